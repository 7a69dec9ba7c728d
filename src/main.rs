//! The `xdplb` command: parses the command line, runs one command, turns its error into an exit status.

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser};
use xdplb::cli::{Cli, Command, DosCommand};
use xdplb::{commands, daemon, decap};

/// It failed while running.
const FAILED: u8 = 1;
/// The command line or the file is wrong.
const WRONG: u8 = 2;

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("xdplb: {}", failure.message);
            ExitCode::from(failure.status)
        }
    }
}

struct Failure {
    message: String,
    status: u8,
}

fn run(cli: Cli) -> Result<(), Failure> {
    let Some(command) = cli.command else {
        let Some(file) = cli.config else {
            Cli::command()
                .error(
                    ErrorKind::MissingRequiredArgument,
                    "--config FILE or a command is required",
                )
                .exit()
        };
        return daemon::run(&file).map_err(|error| Failure {
            status: match error {
                daemon::Error::Config(_) | daemon::Error::Plan(_) => WRONG,
                _ => FAILED,
            },
            message: error.to_string(),
        });
    };
    let out = &mut io::stdout().lock();
    let done = match command {
        Command::Check { config, json } => commands::check::run(&config, json, out),
        Command::Reload { run_dir, json } => commands::reload::run(&run_dir, json, out),
        Command::List { stats, rate, look } => commands::list::run(&look, stats, rate, out),
        Command::Conns {
            filter,
            count,
            look,
        } => commands::conns::run(&look, &filter, count, out),
        Command::Drops { look } => commands::drops::run(&look, out),
        Command::Firewall { look } => commands::firewall::run(&look, out),
        Command::Dos {
            command: None,
            look,
        } => commands::dos::run(&look, out),
        Command::Dos {
            command: Some(DosCommand::Unblock { source }),
            look,
        } => commands::dos::unblock(&look, source, out),
        Command::Stats { watch: None, look } => commands::stats::run(&look, out),
        Command::Stats {
            watch: Some(interval),
            look,
        } => commands::rates::run(&look, interval, io::stdout().is_terminal(), out),
        Command::Completions { shell } => commands::completions::run(shell, out),
        Command::Man { directory } => commands::man::run(&directory),
        Command::Decap(options) => {
            return decap::run(&options).map_err(|error| Failure {
                status: FAILED,
                message: error.to_string(),
            })
        }
    };
    match done {
        Err(commands::Error::Output(error)) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure {
                status: FAILED,
                message: format!("cannot print: {error}"),
            })
        }
        // `| head` has seen enough.
        Ok(()) | Err(commands::Error::Output(_)) => Ok(()),
        Err(error) => Err(Failure {
            status: if error.is_of_file() { WRONG } else { FAILED },
            message: error.to_string(),
        }),
    }
}
