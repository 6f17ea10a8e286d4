//! The product's program with crash points: `KEYTURN_TEST_CRASH_AT=after_reserve` kills it when it first passes that step; so does that name as
//! a line on standard input while it runs, which is answered by `armed`. `stop after_reserve` stops it there instead, until it is told to go on.

#![forbid(unsafe_code)]

use std::io::{self, Write as _};
use std::process::ExitCode;

use keyturn::assembly::Assembly;
use keyturn::crash::{self, Fate, Point};

/// A test that crashes nowhere would prove nothing.
const UNKNOWN_POINT: u8 = 64;

fn main() -> ExitCode {
    if let Ok(name) = std::env::var("KEYTURN_TEST_CRASH_AT") {
        match Point::from_name(&name) {
            Some(point) => crash::arm(point, Fate::Kill),
            None => return ExitCode::from(UNKNOWN_POINT),
        }
    }
    // Other commands have a use for their standard input.
    if std::env::args().nth(1).as_deref() == Some("serve") {
        std::thread::spawn(take_orders);
    }
    keyturn::cli::main(|| Box::new(Assembly))
}

fn take_orders() {
    for order in io::stdin().lines().map_while(Result::ok) {
        let (name, fate) = match order.strip_prefix("stop ") {
            Some(name) => (name, Fate::Stop),
            None => (order.as_str(), Fate::Kill),
        };
        match Point::from_name(name) {
            Some(point) => crash::arm(point, fate),
            None => std::process::exit(UNKNOWN_POINT.into()),
        }
        // Whoever gave the order may be gone.
        let _ = writeln!(io::stdout(), "armed");
    }
}
