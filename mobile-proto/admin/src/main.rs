//! `keyturn-admin`: the program. Everything it does is in the library.

#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;
use keyturn_admin::cli::{self, args::Cli};

/// Unoptimised tree code of OpenMLS wants more than the default 2 MiB.
const STACK: usize = 8 << 20;

fn main() -> ExitCode {
    let cli = Cli::parse();
    keyturn_admin::transport::install_tls_provider();
    // Nothing below `warn` by default; never the client library's own words, which repeat what a relay sent.
    let filter = tracing_subscriber::EnvFilter::try_from_env("KEYTURN_ADMIN_LOG")
        .unwrap_or_else(|_| "warn,nostr_relay_pool=off,nostr_sdk=off".into());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_stack_size(STACK)
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("keyturn-admin: no runtime: {error}");
            return cli::exit::Exit::Local.into();
        }
    };
    let exit = runtime.block_on(cli::run(cli));
    // A question that nobody answers must not keep the process.
    runtime.shutdown_background();
    exit.into()
}
