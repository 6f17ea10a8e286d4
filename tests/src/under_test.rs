//! The product's program with crash points: `KEYTURN_TEST_CRASH_AT=after_reserve` kills it when it first passes that step.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use keyturn::assembly::Assembly;
use keyturn::crash::{self, Point};

fn main() -> ExitCode {
    if let Ok(name) = std::env::var("KEYTURN_TEST_CRASH_AT") {
        match Point::from_name(&name) {
            Some(point) => crash::arm(point),
            // A test that crashes nowhere would prove nothing.
            None => return ExitCode::from(64),
        }
    }
    keyturn::cli::main(|| Box::new(Assembly))
}
