//! The program's log: one line a message, to stderr. Owns its form and its level, both of which a
//! reload may change. `RUST_LOG` goes before the level of the file.

use std::io;
use std::sync::{OnceLock, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use log::{Metadata, Record};
use serde::Serialize;

use crate::config::{Log, LogFormat};

/// Installed once, since `log` takes a logger for ever; what is inside it may be replaced.
struct Logger(RwLock<env_logger::Logger>);

static LOGGER: OnceLock<Logger> = OnceLock::new();

/// Installs the logger, or sets it anew if it is installed already.
///
/// # Errors
///
/// If another logger than this one is installed.
pub fn init(config: Log) -> Result<(), log::SetLoggerError> {
    if LOGGER.get().is_some() {
        reconfigure(config);
        return Ok(());
    }
    let logger = LOGGER.get_or_init(|| Logger(RwLock::new(build(config))));
    log::set_logger(logger)?;
    reconfigure(config);
    Ok(())
}

/// Sets level and form, from the next message on. Does nothing before [`init`].
pub fn reconfigure(config: Log) {
    if let Some(Logger(current)) = LOGGER.get() {
        let logger = build(config);
        log::set_max_level(logger.filter());
        *current.write().unwrap_or_else(PoisonError::into_inner) = logger;
    }
}

impl log::Log for Logger {
    fn enabled(&self, metadata: &Metadata) -> bool {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .enabled(metadata)
    }

    fn log(&self, record: &Record) {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .log(record);
    }

    fn flush(&self) {}
}

fn build(config: Log) -> env_logger::Logger {
    let mut builder = env_logger::Builder::new();
    builder.filter_level(config.level);
    if let Ok(filters) = std::env::var("RUST_LOG") {
        builder.parse_filters(&filters);
    }
    match config.format {
        LogFormat::Json => builder.format(|out, record| json(out, record, now())),
        // The journal has its own.
        LogFormat::Text if std::env::var_os("JOURNAL_STREAM").is_some() => {
            builder.format(|out, record| text(out, record, None))
        }
        LogFormat::Text => builder.format(|out, record| text(out, record, Some(now()))),
    };
    builder.build()
}

/// Time since the epoch; a clock that is set before it reads as the epoch.
fn now() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

fn text(out: &mut impl io::Write, record: &Record, now: Option<Duration>) -> io::Result<()> {
    if let Some(now) = now {
        write!(out, "{} ", timestamp(now))?;
    }
    writeln!(out, "{:<5} {}", record.level(), record.args())
}

fn json(out: &mut impl io::Write, record: &Record, now: Duration) -> io::Result<()> {
    #[derive(Serialize)]
    struct Line<'a> {
        ts: String,
        level: &'static str,
        target: &'a str,
        message: String,
    }
    let line = Line {
        ts: timestamp(now),
        level: record.level().as_str(),
        target: record.target(),
        message: record.args().to_string(),
    };
    serde_json::to_writer(&mut *out, &line)?;
    writeln!(out)
}

/// RFC 3339 in UTC with milliseconds, of a time since the epoch.
fn timestamp(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    let milliseconds = since_epoch.subsec_millis();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milliseconds:03}Z")
}

/// The civil date of a day since 1970-01-01. Years begin in March here, so that the leap day is the
/// last of its year and every month's first day is a linear function of its number.
fn date(days: u64) -> (u64, u64, u64) {
    /// Days in 400 years, after which the calendar repeats.
    const ERA: u64 = 146_097;
    /// From 0000-03-01 to 1970-01-01.
    const OFFSET: u64 = 719_468;
    let days = days + OFFSET;
    let (era, day) = (days / ERA, days % ERA);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 {
        (month + 3, 0)
    } else {
        (month - 9, 1)
    };
    (era * 400 + year + next, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(write: impl Fn(&mut Vec<u8>, &Record) -> io::Result<()>) -> String {
        let mut out = Vec::new();
        let record = Record::builder()
            .level(log::Level::Warn)
            .target("xdplb::neighbours")
            .args(format_args!("a \"quoted\"\nmessage"))
            .build();
        write(&mut out, &record).expect("a vector takes all");
        String::from_utf8(out).expect("text")
    }

    #[test]
    fn timestamps() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_399, "2000-02-28T23:59:59.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (951_868_800, "2000-03-01T00:00:00.000Z"),
            (1_735_689_599, "2024-12-31T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(timestamp(Duration::from_secs(seconds)), expected);
        }
        assert_eq!(
            timestamp(Duration::from_millis(1_007)),
            "1970-01-01T00:00:01.007Z"
        );
    }

    #[test]
    fn both_forms() {
        let at = Duration::from_millis(1500);
        assert_eq!(
            lines(|out, record| text(out, record, Some(at))),
            "1970-01-01T00:00:01.500Z WARN  a \"quoted\"\nmessage\n"
        );
        assert_eq!(
            lines(|out, record| text(out, record, None)),
            "WARN  a \"quoted\"\nmessage\n"
        );
        assert_eq!(
            lines(|out, record| json(out, record, at)),
            "{\"ts\":\"1970-01-01T00:00:01.500Z\",\"level\":\"WARN\",\
             \"target\":\"xdplb::neighbours\",\"message\":\"a \\\"quoted\\\"\\nmessage\"}\n"
        );
    }

    #[test]
    fn level_may_change() {
        let config = |level| Log {
            level,
            format: LogFormat::Text,
        };
        // RUST_LOG would go before either.
        if std::env::var_os("RUST_LOG").is_some() {
            return;
        }
        init(config(log::LevelFilter::Warn)).expect("no other logger");
        assert_eq!(log::max_level(), log::LevelFilter::Warn);
        init(config(log::LevelFilter::Error)).expect("the same logger");
        assert_eq!(log::max_level(), log::LevelFilter::Error);
        reconfigure(config(log::LevelFilter::Debug));
        assert_eq!(log::max_level(), log::LevelFilter::Debug);
    }
}
