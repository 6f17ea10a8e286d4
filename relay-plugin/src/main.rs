//! The `keyturn` binary.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use keyturn::{assembly::Assembly, cli};

fn main() -> ExitCode {
    cli::main(|| Box::new(Assembly))
}
