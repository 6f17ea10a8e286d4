//! `keyturn admin`: who may ask for rotations. Arguments.

use clap::{Args, Subcommand};
use nostr::PublicKey;

use super::{client::Listing, values};

/// What to do with admins.
#[derive(Debug, Subcommand)]
pub enum AdminCommand {
    /// Enrol an admin; prints the otpauth URI and its QR code once
    Enroll(Enroll),
    /// List the admins
    List(Listing),
    /// Revoke an admin at once
    Revoke(Revoke),
}

/// `admin enroll`.
#[derive(Debug, Args)]
pub struct Enroll {
    /// npub or hex
    #[arg(value_parser = values::public_key)]
    pub npub: PublicKey,
    /// A client the admin may touch; repeat for more
    #[arg(long = "client", value_name = "CLIENT_ID", required = true)]
    pub clients: Vec<String>,
}

/// `admin revoke`.
#[derive(Debug, Args)]
pub struct Revoke {
    /// npub or hex
    #[arg(value_parser = values::public_key)]
    pub npub: PublicKey,
}
