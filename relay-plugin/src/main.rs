<<<<<<< HEAD
//! The `keyturn` binary.

use std::process::ExitCode;

use keyturn::{assembly::Assembly, cli};

fn main() -> ExitCode {
    cli::main(|| Box::new(Assembly))
=======
//! The `keyturn` program. Everything is in the library; here the production adapters are handed to the command line.

use std::process::ExitCode;

use keyturn::wiring::Production;

fn main() -> ExitCode {
    keyturn::cli::main(|| Box::new(Production))
>>>>>>> 918b576 (Choose the adapters in one place and ship the program)
}
