//! The forms in which commands print: addresses with ports, columns, JSON.

use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use crate::config::PortRange;

/// `10.0.5.2:80`, `[2001:db8::1]:80`
pub fn endpoint(address: IpAddr, port: u16) -> String {
    SocketAddr::new(address, port).to_string()
}

/// An address with ports as a file would have them: `10.0.5.2:8000-8010`, `[2001:db8::1]:any`.
pub fn bound(address: IpAddr, ports: impl std::fmt::Display) -> String {
    match address {
        IpAddr::V4(v4) => format!("{v4}:{ports}"),
        IpAddr::V6(v6) => format!("[{v6}]:{ports}"),
    }
}

/// `80,443,8000-8010`
pub fn ranges(ports: &[PortRange]) -> String {
    ports
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(",")
}

/// Rows with their columns aligned: to the left, but for `right`, counted from 0.
pub fn columns(out: &mut impl Write, rows: &[Vec<String>], right: &[usize]) -> io::Result<()> {
    let count = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..count)
        .map(|column| width(column).unwrap_or(0))
        .collect();
    for row in rows {
        let mut line = String::new();
        for (column, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            if right.contains(&column) {
                line.push_str(&format!("{cell:>width$}  "));
            } else {
                line.push_str(&format!("{cell:<width$}  "));
            }
        }
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// A rate in three figures: `7.5`, `820`, `1.25M`.
pub fn short(rate: f64) -> String {
    const UNITS: [&str; 5] = ["", "k", "M", "G", "T"];
    let mut scaled = rate;
    let mut unit = 0;
    // A number that would be rounded to 1000 goes to the next unit.
    while scaled >= 999.5 && unit + 1 < UNITS.len() {
        scaled /= 1000.0;
        unit += 1;
    }
    let decimals = match scaled {
        _ if unit == 0 => usize::from(scaled < 99.95 && scaled.fract() != 0.0),
        below if below < 9.995 => 2,
        below if below < 99.95 => 1,
        _ => 0,
    };
    format!("{scaled:.decimals$}{}", UNITS[unit])
}

/// Indented JSON and a line's end.
pub fn json(out: &mut impl Write, value: &impl Serialize) -> Result<(), super::Error> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_figures() {
        for (rate, text) in [
            (0.0, "0"),
            (0.3, "0.3"),
            (7.5, "7.5"),
            (12.0, "12"),
            (820.4, "820"),
            (999.4, "999"),
            (999.6, "1.00k"),
            (1254.0, "1.25k"),
            (99_960.0, "100k"),
            (999_600.0, "1.00M"),
            (1.25e6, "1.25M"),
            (9.4e10, "94.0G"),
            (2.0e15, "2000T"),
        ] {
            assert_eq!(short(rate), text, "{rate}");
        }
    }
}
