//! What each subcommand does, one file a command. Owns their output; the command line itself is
//! read elsewhere.

pub mod check;
