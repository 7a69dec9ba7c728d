//! The program's log: one line a message, to stderr. Owns its form and its level, both of which a
//! reload may change. `RUST_LOG` goes before the level of the file.

use std::fmt::Display;
use std::io;
use std::sync::{OnceLock, PoisonError, RwLock};

use log::{Metadata, Record};
use serde::Serialize;

use crate::config::{Log, LogFormat};

/// Installed once, since `log` takes a logger for ever; its settings may be replaced.
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
    builder(config).build()
}

fn builder(config: Log) -> env_logger::Builder {
    let mut builder = env_logger::Builder::new();
    builder.filter_level(config.level);
    if let Ok(filters) = std::env::var("RUST_LOG") {
        builder.parse_filters(&filters);
    }
    // RFC 3339 in UTC, with milliseconds.
    match config.format {
        LogFormat::Json => builder.format(|out, record| {
            let now = out.timestamp_millis();
            json(out, record, &now)
        }),
        // The journal has its own.
        LogFormat::Text if std::env::var_os("JOURNAL_STREAM").is_some() => {
            builder.format(|out, record| text(out, record, None))
        }
        LogFormat::Text => builder.format(|out, record| {
            let now = out.timestamp_millis();
            text(out, record, Some(&now))
        }),
    };
    builder
}

fn text(out: &mut impl io::Write, record: &Record, now: Option<&dyn Display>) -> io::Result<()> {
    if let Some(now) = now {
        write!(out, "{now} ")?;
    }
    writeln!(out, "{:<5} {}", record.level(), record.args())
}

fn json(out: &mut impl io::Write, record: &Record, now: &dyn Display) -> io::Result<()> {
    #[derive(Serialize)]
    struct Line<'a> {
        ts: String,
        level: &'static str,
        target: &'a str,
        message: String,
    }
    let line = Line {
        ts: now.to_string(),
        level: record.level().as_str(),
        target: record.target(),
        message: record.args().to_string(),
    };
    serde_json::to_writer(&mut *out, &line)?;
    writeln!(out)
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

    /// The text that a logger writes for a message.
    fn logged(format: LogFormat) -> String {
        let (reader, writer) = io::pipe().expect("a pipe");
        let mut builder = builder(Log {
            level: log::LevelFilter::Info,
            format,
        });
        let target = env_logger::Target::Pipe(Box::new(writer));
        let logger = builder.target(target).build();
        let record = Record::builder().args(format_args!("a message")).build();
        log::Log::log(&logger, &record);
        drop(logger);
        io::read_to_string(reader).expect("a line")
    }

    #[test]
    fn timestamps_are_rfc_3339_in_utc_with_milliseconds() {
        let json: serde_json::Value =
            serde_json::from_str(&logged(LogFormat::Json)).expect("an object");
        let mut stamps = vec![json["ts"].as_str().expect("a text").to_owned()];
        if std::env::var_os("JOURNAL_STREAM").is_none() {
            let text = logged(LogFormat::Text);
            stamps.push(text.split(' ').next().expect("a word").to_owned());
        }
        for stamp in stamps {
            let form: String = stamp
                .chars()
                .map(|c| if c.is_ascii_digit() { '0' } else { c })
                .collect();
            assert_eq!(form, "0000-00-00T00:00:00.000Z", "{stamp}");
            assert!(stamp.starts_with("20"), "{stamp}");
        }
    }

    #[test]
    fn both_forms() {
        let at: &dyn Display = &"1970-01-01T00:00:01.500Z";
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
