//! The `keyturn` binary.

use std::process::ExitCode;

use keyturn::{assembly::Assembly, cli};

fn main() -> ExitCode {
    cli::main(|| Box::new(Assembly))
}
