//! What auditors are offered. `docs/auditors.md` shows each of them as the request that is sent; a test holds the page to this list and runs it.

use super::{
    Audience, Filter, Op, Operand, Order, Parameter, Query, Scope, ascending, descending, filter,
    is,
};
use crate::collections::{ACTIONS, AUDIT, CHAINS, ROTATIONS};

/// Most results of one request; the next page is asked for with `startAt`.
const PAGE: u32 = 300;

const fn query(
    name: &'static str,
    finds: &'static str,
    collection: &'static str,
    filters: &'static [Filter],
    order: &'static [Order],
) -> Query {
    Query {
        name,
        audience: Audience::Auditors,
        finds,
        collection,
        scope: Scope::Collection,
        filters,
        order,
        only: &[],
        limit: Some(PAGE),
    }
}

const fn text(name: &'static str, example: &'static str) -> Operand {
    Operand::AnyText(Parameter { name, example })
}

const fn time(name: &'static str, example: &'static str) -> Operand {
    Operand::AnyTime(Parameter { name, example })
}

const CLIENT: Operand = text("client", "ext-totp-svc");
const ROTATION: Operand = text("rotation", "01JM8VEZ9G0000000000000000");
const ADMIN: Operand = text(
    "admin",
    "npub10elfcs4fr0l0r8af98jlmgdh9c8tcxjvz9qkw038js35mp4dma8qzvjptg",
);
const NOW: Operand = time("now", "2026-03-02T00:00:00Z");
const FROM: Operand = time("from", "2026-03-01T00:00:00Z");
const TO: Operand = time("to", "2026-04-01T00:00:00Z");

/// `event` of what was refused, one by one or counted.
const REFUSALS: Operand = Operand::Texts(&[
    "request.refused",
    "request.refused_repeatedly",
    "ack.refused",
    "member.refused_repeatedly",
]);

/// Who rotated a client.
pub const WHO_ROTATED: Query = query(
    "who-rotated",
    "who rotated a client's secret, the newest rotation first",
    ROTATIONS,
    &[filter("client_id", Op::Is, CLIENT)],
    &[descending("created_at")],
);
/// Rotations that wait for acks past their deadline.
pub const OPEN_PAST_DEADLINE: Query = query(
    "open-past-deadline",
    "rotations still open though their ack deadline is over, the longest overdue first",
    ROTATIONS,
    &[
        filter("state", Op::In, Operand::Texts(&["reserved", "prepared"])),
        filter("ack_deadline", Op::Before, NOW),
    ],
    &[ascending("ack_deadline")],
);
/// Clients whose secret is old.
pub const SECRET_OLDER_THAN: Query = query(
    "secret-older-than",
    "active clients whose secret has been in use since before a given day, the oldest first",
    CHAINS,
    &[
        is("status", "active"),
        filter(
            "secret_since",
            Op::Before,
            time("day", "2025-12-02T00:00:00Z"),
        ),
    ],
    &[ascending("secret_since")],
);
/// Clients with two living secrets.
pub const IN_GRACE: Query = query(
    "in-grace",
    "clients whose previous secret still works, the one that ends first at the top",
    CHAINS,
    &[filter("grace_until", Op::After, NOW)],
    &[ascending("grace_until")],
);
/// What an admin was refused.
pub const REFUSALS_OF_ADMIN: Query = query(
    "refusals-of-admin",
    "what an admin was refused, the newest first",
    AUDIT,
    &[
        filter("actor.npub", Op::Is, ADMIN),
        filter("event", Op::In, REFUSALS),
    ],
    &[descending("at")],
);
/// What was refused for one reason.
pub const REFUSALS_BY_REASON: Query = query(
    "refusals-by-reason",
    "requests refused for one reason in a period, in order of time",
    AUDIT,
    &[
        is("event", "request.refused"),
        filter("reason", Op::Is, text("reason", "totp.wrong")),
        filter("at", Op::NotBefore, FROM),
        filter("at", Op::Before, TO),
    ],
    &[ascending("at")],
);
/// The whole history of a client.
pub const HISTORY_OF_CLIENT: Query = query(
    "history-of-client",
    "everything that happened to a client, in the order of its chain",
    AUDIT,
    &[filter(
        "chain",
        Op::Is,
        text("chain", "client:ext-totp-svc"),
    )],
    &[ascending("seq")],
);
/// Revocations.
pub const REVOCATIONS: Query = query(
    "revocations",
    "revocations and emergencies in a period, in order of time",
    ACTIONS,
    &[
        filter(
            "action_type",
            Op::In,
            Operand::Texts(&["revoke", "emergency"]),
        ),
        filter("created_at", Op::NotBefore, FROM),
        filter("created_at", Op::Before, TO),
    ],
    &[ascending("created_at")],
);
/// Who acked.
pub const ACKS_OF_ROTATION: Query = Query {
    only: &["client_id", "state", "outcome", "readers", "quorum"],
    ..query(
        "acks-of-rotation",
        "who may read the secret of a rotation, and who acked it, with proof or without",
        ROTATIONS,
        &[filter("rotation_id", Op::Is, ROTATION)],
        &[],
    )
};
/// What operators changed.
pub const CHANGES_BY_OPERATORS: Query = query(
    "changes-by-operators",
    "what operators changed at the command line, the newest first",
    AUDIT,
    &[is("actor.by", "operator")],
    &[descending("at")],
);
/// Alarms about groups.
pub const GROUP_ALARMS: Query = query(
    "group-alarms",
    "groups that were suspended or frozen, strangers in them, Welcomes and commits refused, the newest first",
    AUDIT,
    &[filter(
        "event",
        Op::In,
        Operand::Texts(&[
            "group.suspended",
            "group.frozen",
            "roster.stranger",
            "roster.refused",
            "welcome.refused",
            "commit.refused",
        ]),
    )],
    &[descending("at")],
);
/// Rotations that did not end well.
pub const NOT_PROMOTED: Query = query(
    "not-promoted",
    "rotations that ended in a period without the new secret staying, in order of time",
    ROTATIONS,
    &[
        filter(
            "outcome",
            Op::In,
            Operand::Texts(&["canceled", "expired", "rolled_back", "revoked"]),
        ),
        filter("completed_at", Op::NotBefore, FROM),
        filter("completed_at", Op::Before, TO),
    ],
    &[ascending("completed_at")],
);

/// All of them, in the order of the page.
pub const ALL: &[&Query] = &[
    &WHO_ROTATED,
    &OPEN_PAST_DEADLINE,
    &SECRET_OLDER_THAN,
    &IN_GRACE,
    &REFUSALS_OF_ADMIN,
    &REFUSALS_BY_REASON,
    &HISTORY_OF_CLIENT,
    &REVOCATIONS,
    &ACKS_OF_ROTATION,
    &CHANGES_BY_OPERATORS,
    &GROUP_ALARMS,
    &NOT_PROMOTED,
];
