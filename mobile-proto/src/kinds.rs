//! Nostr event kinds and tag names of the protocol (protocol.md §5, marmot.md).

/// Key package, addressable (MIP-00).
pub const KEY_PACKAGE: u16 = 30443;
/// Key package, older plain kind.
pub const KEY_PACKAGE_LEGACY: u16 = 443;
/// Welcome rumor inside a gift wrap (MIP-02).
pub const WELCOME: u16 = 444;
/// Group event: MLS messages and commits (MIP-03).
pub const GROUP_EVENT: u16 = 445;
/// NIP-59 gift wrap.
pub const GIFT_WRAP: u16 = 1059;
/// rotate-request, cleartext fallback; also the rumor kind inside MLS is [`SERVICE_REQUEST`].
pub const ROTATE_REQUEST: u16 = 40901;
/// rotate-ack.
pub const ROTATE_ACK: u16 = 40902;
/// rotate-notify; exists only as a rumor inside MLS, never as an event of its own.
pub const ROTATE_NOTIFY: u16 = 40903;
/// service-request.
pub const SERVICE_REQUEST: u16 = 40910;
/// Generic service ack.
pub const SERVICE_ACK: u16 = 40911;
/// service-notify.
pub const SERVICE_NOTIFY: u16 = 40912;

/// Tag that names the group of a 445 event.
pub const TAG_GROUP: &str = "h";
