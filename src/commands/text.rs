//! The forms in which commands print: addresses with ports, columns, JSON.

use std::fmt::{Display, Write as _};
use std::io::{self, Write};
use std::net::IpAddr;

use serde::Serialize;

use crate::config::PortRange;

/// An address with ports as a file would have them: `10.0.5.2:8000-8010`, `[2001:db8::1]:any`.
pub fn bound(address: IpAddr, ports: impl Display) -> String {
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
        line(out, row.iter().map(String::as_str), &widths, right)?;
    }
    Ok(())
}

fn line<'a>(
    out: &mut impl Write,
    cells: impl Iterator<Item = &'a str>,
    widths: &[usize],
    right: &[usize],
) -> io::Result<()> {
    let mut line = String::new();
    for (column, (cell, &width)) in cells.zip(widths).enumerate() {
        let padding = width.saturating_sub(cell.chars().count());
        let (before, after) = match right.contains(&column) {
            true => (padding, 2),
            false => (0, padding + 2),
        };
        line.extend(std::iter::repeat_n(' ', before));
        line.push_str(cell);
        line.extend(std::iter::repeat_n(' ', after));
    }
    writeln!(out, "{}", line.trim_end())
}

/// Rows of a [`Table`] that are printed at once.
const BLOCK: usize = 1024;

/// Columns as [`columns`] aligns them, of any number of rows without keeping them all: each block of rows is
/// as wide as it has to be, and no narrower than those before.
pub struct Table<'a, W, const N: usize> {
    out: W,
    right: &'a [usize],
    widths: [usize; N],
    /// The block's cells one after the other, and where each ends.
    text: String,
    ends: Vec<usize>,
}

impl<'a, W: Write, const N: usize> Table<'a, W, N> {
    /// Begins a table with its head. Columns are aligned to the left, but for `right`, counted from 0.
    pub fn new(out: W, right: &'a [usize], head: [&str; N]) -> Self {
        let mut table = Table {
            out,
            right,
            widths: [0; N],
            text: String::new(),
            ends: Vec::new(),
        };
        head.iter().for_each(|cell| table.cell(cell));
        table
    }

    /// Adds a row.
    ///
    /// # Errors
    /// When rows cannot be printed.
    pub fn row(&mut self, cells: [&dyn Display; N]) -> io::Result<()> {
        cells.iter().for_each(|cell| self.cell(cell));
        if self.ends.len() < N * BLOCK {
            return Ok(());
        }
        self.print()
    }

    /// Prints the rest.
    ///
    /// # Errors
    /// When it cannot be printed.
    pub fn end(mut self) -> io::Result<()> {
        self.print()?;
        self.out.flush()
    }

    fn cell(&mut self, cell: &dyn Display) {
        // Writing to a string cannot fail.
        let _ = write!(self.text, "{cell}");
        self.ends.push(self.text.len());
    }

    fn print(&mut self) -> io::Result<()> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let cells: Vec<&str> = starts
            .zip(&self.ends)
            .filter_map(|(start, &end)| self.text.get(start..end))
            .collect();
        for row in cells.chunks_exact(N) {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        for row in cells.chunks_exact(N) {
            line(&mut self.out, row.iter().copied(), &self.widths, self.right)?;
        }
        drop(cells);
        self.text.clear();
        self.ends.clear();
        Ok(())
    }
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

    /// The last cell of every row is one column wide at least, and the columns before it are aligned.
    #[test]
    fn a_table_is_aligned_block_by_block() {
        let printed = |rows: &[[&str; 3]]| {
            let mut out = Vec::new();
            let mut table = Table::new(&mut out, &[1], ["Name", "N", "Last"]);
            for row in rows {
                table
                    .row(row.each_ref().map(|cell| cell as _))
                    .expect("a vector takes all");
            }
            table.end().expect("a vector takes all");
            String::from_utf8(out).expect("text")
        };
        assert_eq!(printed(&[]), "Name  N  Last\n");
        assert_eq!(
            printed(&[["a", "1", ""], ["\u{e9}t\u{e9}", "1000", "x"]]),
            "Name     N  Last\na        1\n\u{e9}t\u{e9}   1000  x\n"
        );
        // The head is the first block's first row.
        let mut rows = vec![["a", "1", "x"]; 3 * BLOCK];
        rows[BLOCK - 1] = ["longer", "1", "y"];
        let text = printed(&rows);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), rows.len() + 1);
        assert_eq!(lines[0], "Name  N  Last");
        assert_eq!(lines[BLOCK - 1], "a     1  x");
        assert_eq!(lines[BLOCK], "longer  1  y");
        assert_eq!(lines[BLOCK + 1], "a       1  x");
        assert_eq!(lines[3 * BLOCK], "a       1  x");
    }

    #[test]
    fn a_table_ends_with_the_first_line_that_is_not_taken() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut table = Table::new(Full, &[], ["Name"]);
        let rows = (0..2 * BLOCK).take_while(|_| table.row([&"a"]).is_ok());
        assert_eq!(rows.count(), BLOCK - 2);
    }

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
