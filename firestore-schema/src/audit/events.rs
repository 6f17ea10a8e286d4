//! Every word that a record's `event` can be. `docs/generated/audit-events.md` is made from it, and a test of `keyturn` reads the sources to see that there is no other.

use std::fmt::Write as _;

/// How a record gets into the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum With {
    /// In the transaction of the change that it tells of.
    Change,
    /// In a transaction of its own: nothing else changes but the mark that makes everybody refuse the same event.
    Alone,
}

/// One word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// The word.
    pub word: &'static str,
    /// See [`With`].
    pub with: With,
    /// What happened.
    pub meaning: &'static str,
}

const fn change(word: &'static str, meaning: &'static str) -> Event {
    Event {
        word,
        with: With::Change,
        meaning,
    }
}

const fn alone(word: &'static str, meaning: &'static str) -> Event {
    Event {
        word,
        with: With::Alone,
        meaning,
    }
}

/// All of them, by what they are about.
pub const EVENTS: &[(&str, &[Event])] = &[
    (
        "Requests",
        &[
            change(
                "nonce.burnt",
                "membership and proof were good and the proof is used up; the reason is the action asked for",
            ),
            change("totp.used", "a code was right, and is used up"),
            change(
                "totp.wrong",
                "a code was wrong: counted, perhaps the admin is locked out",
            ),
            alone(
                "request.refused",
                "not admitted, or admitted and then in conflict; the reason says why",
            ),
            alone(
                "request.refused_repeatedly",
                "a flood: number, times, reason and digest of the refusals that have no record of their own",
            ),
            change(
                "request.repeated",
                "the same request again, with a code that is spent now",
            ),
            alone("request.failed", "a bug: the request was given up"),
            alone("status.told", "a status was asked for and told"),
        ],
    ),
    (
        "Rotations",
        &[
            change("rotation.reserved", "the client is taken for one rotation"),
            change(
                "emergency.reserved",
                "the same for an emergency: every living version is dead",
            ),
            change(
                "rotation.prepared",
                "the pending version, its readers and its ciphertext are recorded",
            ),
            change(
                "rotation.taken_over",
                "recovery begins the rotation again; what the attempt before made is void",
            ),
            change("ack.recorded", "an admin's ack, proven or unproven"),
            alone("ack.late", "an ack after the end"),
            alone(
                "ack.refused",
                "an ack that is worth nothing; the reason says why",
            ),
            change(
                "rotation.quorum_lost",
                "acks that stood for the quorum count no more; others are awaited",
            ),
            change(
                "rotation.promoted",
                "the new version is current, the old one in grace",
            ),
            change(
                "rotation.canceled",
                "withdrawn: by an admin, the operator, or the relay (`reader.revoked`: somebody can read the pending secret who may not any more)",
            ),
            change(
                "rotation.canceled_before",
                "an admin asked to withdraw what another request had withdrawn",
            ),
            change("rotation.expired", "the ack deadline passed"),
            change(
                "rotation.revoked",
                "its version was revoked before it was current",
            ),
            change(
                "rotation.rolled_back",
                "within grace, the version before is current again",
            ),
            change("rotation.announced", "the admins were told how it ended"),
            alone("announcement.withheld", "one group could not be told"),
            change("version.retired", "grace is over"),
            change("version.revoked", "declared bad"),
            change(
                "outbox.purged",
                "ciphertext was deleted after its retention",
            ),
        ],
    ),
    (
        "The operator",
        &[
            change("admin.enrolled", "an admin, with a new TOTP seed"),
            change("admin.changed", "another scope"),
            change("admin.revoked", "may do nothing any more"),
            change(
                "admin.key_proven",
                "an MLS signature key was proven for an admin",
            ),
            change("client.added", "a client without a secret yet"),
            change(
                "client.imported",
                "a client with the secret it has, by its hash or its plaintext",
            ),
            alone(
                "client.import_refused",
                "an import that is not what it should be",
            ),
            change("client.activated", "back in service"),
            change(
                "client.suspended",
                "out of service; a rotation under way is cancelled",
            ),
            change("client.revoked", "out of service for good"),
            change("group.bound", "an alias, its ids and its welcomers"),
            change("group.approved", "a suspended group acts again"),
            change(
                "group.suspended",
                "nothing is sealed in a group, and nothing from it counts",
            ),
        ],
    ),
    (
        "Groups",
        &[
            change(
                "group.joined",
                "the relay was welcomed, and the alias is bound",
            ),
            change("group.readdressed", "the operator approved a new address"),
            alone(
                "group.address_changed",
                "a commit changed the address: the group is suspended",
            ),
            alone("group.commit_followed", "a change of a group was taken in"),
            alone("group.left", "somebody removed the relay"),
            alone(
                "group.frozen",
                "the members seem to follow a commit that was refused",
            ),
            alone("group.thawed", "they do not"),
            alone(
                "commit.refused",
                "a change came too late, or from somebody who may not make it",
            ),
            alone("welcome.refused", "a Welcome that nobody expects"),
            alone(
                "roster.stranger",
                "a commit brought in somebody who is not enrolled, revoked, or not proven",
            ),
            alone(
                "roster.sibling",
                "a commit brought in another relay of ours; proven or not proven yet",
            ),
            alone(
                "roster.refused",
                "not sealed: somebody in the group may not read the secret",
            ),
            alone("message.dropped", "a message that counts for nothing"),
            alone(
                "member.refused_repeatedly",
                "the same for one member's acks and messages",
            ),
            alone("event.invalid", "an event of a served group that is none"),
            alone("event.kept", "an event that cannot be opened yet"),
        ],
    ),
    (
        "Instances",
        &[change(
            "lease.taken",
            "another instance does the timed work, or the same one after a lapse",
        )],
    ),
    (
        "Stores",
        &[alone(
            "store.copied",
            "everything was copied here from another store, and verified",
        )],
    ),
    (
        "Devices",
        &[
            change("device.allowed", "on the allow-list"),
            change("device.changed", "another role or other options"),
            change("device.denied", "off the allow-list"),
            change(
                "device.invalidated",
                "what it holds is destroyed; it stays on the allow-list",
            ),
            change("device.asked", "a device asked for a secret_id"),
            alone(
                "device.refused",
                "a message of a device that counts for nothing, or for less than it says; the reason says why",
            ),
            alone(
                "device.refused_repeatedly",
                "a flood: number, times, reason and digest (over the nonces) of those that have no record of their own",
            ),
            change(
                "device.superseded",
                "a newer nonce replaces an issue that was not confirmed",
            ),
            change("device.issued", "a secret_id is on its way"),
            change(
                "device.overtaken",
                "issued for a nonce that is not awaited any more",
            ),
            change("device.issue_failed", "the issuer failed"),
            change(
                "device.interrupted",
                "an issue was under way when its time ended",
            ),
            change(
                "device.not_sent",
                "a secret_id could not be handed to the broker: destroyed, and the device is to ask again",
            ),
            change("device.confirmed", "the device has it, and proved so"),
            change("device.confirmed_unproven", "the device says so"),
            change("device.failed", "the device says that it does not work"),
            change("device.unconfirmed", "the device never said so"),
            change("device.lapsed", "a secret_id came to its end"),
            change("device.destroyed", "a secret_id was destroyed"),
            change(
                "device.already_gone",
                "a secret_id to be destroyed was gone",
            ),
            change(
                "device.destroy_failed",
                "the issuer did not destroy it; tried again",
            ),
            change(
                "device.destroy_overtaken",
                "it came to its end before it was destroyed",
            ),
            change(
                "device.orphan_found",
                "a secret_id that belongs to no issue: destroyed",
            ),
            change(
                "device.search_failed",
                "what an issue of unknown outcome has made could not be looked for; tried again",
            ),
            change(
                "device.nothing_found",
                "what an issue in doubt may have made is not there; the reason says whether it was searched for, or is dead by now",
            ),
            change("device.pinged", "asked whether it is there"),
            change("device.ping_unanswered", "it is not"),
            change("approle.role_created", "a role of the embedded issuer"),
            change("approle.login", "a login with a good secret_id"),
            alone(
                "approle.login_refused",
                "a login with a secret_id that exists and does not count",
            ),
        ],
    ),
];

/// The page.
#[must_use]
pub fn page() -> String {
    let mut page = String::from(
        "# Audit events\n\nGenerated from `firestore-schema/src/audit/events.rs`; do not edit. To make it again: \
         `KEYTURN_REGENERATE=1 cargo test -p keyturn-store --test generated`.\n\n\
         A record with a change is in the very transaction of that change: there is not one without the other. A record alone tells of something that changed nothing.\n",
    );
    for (title, events) in EVENTS {
        // Writing to a String cannot fail.
        let _ = write!(
            page,
            "\n## {title}\n| `event` | with | what happened |\n|---|---|---|\n"
        );
        for event in *events {
            let with = match event.with {
                With::Change => "the change",
                With::Alone => "alone",
            };
            let _ = writeln!(page, "| `{}` | {with} | {} |", event.word, event.meaning);
        }
    }
    page
}
