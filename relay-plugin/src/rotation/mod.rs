//! The rotation of one secret, from an opened request to the retirement of the old version.
//!
//! Within one call the rotation hands itself over as types, and only the step before can make the next one:
//! [`request`] (`Requested` → `Authorised`) → [`reserve`] (`Reserved`) → [`generate`] (`Generated`) → [`mac`] (`Maced`) → [`seal`] (`Sealed`) →
//! [`prepare`] (`Prepared`) → [`distribute`] (`Distributed`).
//!
//! From the acks on, the operation outlives the process: [`machine`] says, from what the store holds, what is to be done; [`driver`] and
//! [`recover`] do it, by way of [`ack`], [`promote`], [`retire`], [`cancel`]. The other actions are [`rollback`], [`revoke`] and [`status`];
//! [`repeat`] answers what was granted before.
//!
//! What must always hold: a plaintext exists from `Generated` to `Sealed`, in memory only; every change of the store is one transaction with
//! its audit record; a process killed between any two steps leaves a state from which [`recover`] goes on.

pub mod ack;
pub mod audit;
pub mod cancel;
pub mod distribute;
pub mod driver;
pub mod engine;
pub mod failure;
pub mod generate;
pub mod lease;
pub mod mac;
pub mod machine;
pub mod ports;
pub mod prepare;
pub mod promote;
pub mod recover;
pub mod repeat;
pub mod request;
pub mod reserve;
pub mod retire;
pub mod revoke;
pub mod rollback;
pub mod seal;
pub mod settings;
pub mod status;

pub use engine::{Engine, Parts};
pub use failure::Failure;
pub use settings::Settings;
