//! The sibling of the rotation: devices get fresh AppRole secret_ids (protocol.md §8). It shares the store, the limits and the shutdown of the rotation and
//! none of its policy; either works when the other is down.

pub mod issuer;
