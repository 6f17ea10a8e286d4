//! The admin program, built where the end-to-end tests can start it.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    keyturn_admin::cli::main()
}
