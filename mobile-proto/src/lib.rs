//! What travels between Keyturn's relay, its admins, the verifying server and the auditors.
//!
//! Pure: no I/O, no clock, no runtime; it builds for mobile and wasm32. The only outside effect is the operating
//! system's random generator in [`Secret::generate`] and the id constructors. On `wasm32-unknown-unknown` that generator has to be named:
//! feature `wasm_js` takes the browser's; a program with another host provides its own `getrandom` backend.
//!
//! Read in the order the data walks: [`ids`] → [`secret`] → [`canonical`] → [`mod@derive`] → [`action`] → [`nonce`] → [`proof`] →
//! [`request`] → [`notify`] → [`ack`] → [`error`] → [`kinds`] → [`inner`]; the devices' flow over MQTT is [`device`]. `schema/` and `vectors/` beside `src/` say the same to other
//! languages; both are generated from this crate by `cargo run -p keyturn-proto --example regenerate`.

#![forbid(unsafe_code)]

pub mod ack;
pub mod action;
pub mod canonical;
pub mod derive;
pub mod device;
pub mod encoding;
pub mod error;
pub mod ids;
pub mod inner;
pub mod kinds;
pub mod nonce;
pub mod notify;
pub mod proof;
pub mod request;
pub mod schema;
pub mod secret;
pub mod time;

pub use ack::RotateAck;
pub use action::{Action, Params};
pub use error::{ErrorClass, Invalid};
pub use ids::{ClientId, MlsGroupId, Npub, RotationId, VersionId};
pub use inner::Inner;
pub use notify::{Outcome, RotateNotify, ServiceNotify};
pub use request::ServiceRequest;
pub use secret::{PresentedSecret, Secret};
pub use time::UnixMs;
