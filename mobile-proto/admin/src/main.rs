//! `keyturn-admin`: the program. Everything it does is in the library.

#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    keyturn_admin::cli::main()
}
