-- Keyturn's own tables. OpenMLS keeps its state in the tables of openmls_sqlite_storage beside them.
-- No column ever holds the plaintext of an application message, except inbox.body, which the caller fills.

CREATE TABLE member (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    npub BLOB NOT NULL,
    signature_key BLOB NOT NULL,
    key_package_d TEXT,                    -- the `d` under which our key packages replace one another
    key_package_at INTEGER NOT NULL DEFAULT 0 -- created_at of the newest, seconds
);

CREATE TABLE groups (
    mls_group_id BLOB PRIMARY KEY,
    nostr_group_id BLOB NOT NULL,          -- the one that was joined or approved
    epoch INTEGER NOT NULL,
    evicted INTEGER NOT NULL DEFAULT 0,
    frozen TEXT,                           -- NULL, 'forked', 'nostr_group_id'
    welcomer BLOB,                         -- NULL: made by us
    self_update_epoch INTEGER,             -- first epoch with a leaf key of our own making; NULL: none yet
    rival_epoch INTEGER,                   -- highest source epoch of a refused commit that peers may follow
    joined_at INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE addresses (
    nostr_group_id BLOB PRIMARY KEY,
    mls_group_id BLOB NOT NULL REFERENCES groups ON DELETE CASCADE
) WITHOUT ROWID;

CREATE TABLE epochs (
    mls_group_id BLOB NOT NULL REFERENCES groups ON DELETE CASCADE,
    epoch INTEGER NOT NULL,
    exporter BLOB NOT NULL,
    roster BLOB NOT NULL,                  -- leaf index (u32), npub, signature key; 68 bytes each
    group_data BLOB NOT NULL,
    PRIMARY KEY (mls_group_id, epoch)
) WITHOUT ROWID;

-- The commit that was applied to each recent epoch. While it may still lose, what was before it is kept.
CREATE TABLE commits (
    mls_group_id BLOB NOT NULL REFERENCES groups ON DELETE CASCADE,
    source_epoch INTEGER NOT NULL,
    event_id BLOB NOT NULL,
    created_at INTEGER NOT NULL,           -- seconds, as the event says
    settles_at INTEGER NOT NULL,           -- milliseconds
    settled INTEGER NOT NULL DEFAULT 0,
    snapshot BLOB,                         -- NULL once settled
    PRIMARY KEY (mls_group_id, source_epoch)
);

CREATE TABLE pending (
    mls_group_id BLOB NOT NULL REFERENCES groups ON DELETE CASCADE,
    source_epoch INTEGER NOT NULL,
    event_id BLOB NOT NULL UNIQUE,
    event TEXT NOT NULL,
    message BLOB NOT NULL,                 -- the MLSMessage, to wrap it again
    superseded INTEGER NOT NULL DEFAULT 0, -- another commit was applied to this epoch
    PRIMARY KEY (mls_group_id, source_epoch)
);

CREATE TABLE welcomes (
    event_id BLOB PRIMARY KEY,
    mls_group_id BLOB NOT NULL REFERENCES groups ON DELETE CASCADE,
    source_epoch INTEGER NOT NULL,
    released INTEGER NOT NULL DEFAULT 0,
    recipient BLOB NOT NULL,
    event TEXT NOT NULL
);

CREATE TABLE key_packages (
    reference BLOB PRIMARY KEY,
    stored_as BLOB NOT NULL,               -- openmls_key_packages.key_package_ref
    addressable_event BLOB NOT NULL,
    legacy_event BLOB NOT NULL,
    not_after INTEGER NOT NULL             -- seconds
) WITHOUT ROWID;

CREATE TABLE joined (
    gift_wrap BLOB PRIMARY KEY,
    rumor BLOB NOT NULL,
    mls_group_id BLOB NOT NULL,
    welcomer BLOB NOT NULL,
    delete_events BLOB NOT NULL            -- ids of 32 bytes one after another
) WITHOUT ROWID;

CREATE TABLE seen (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id BLOB NOT NULL UNIQUE
);

-- Events that wait: for a key (unopened) or for somebody to ask (deferred). Ciphertext only.
CREATE TABLE held (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    event_id BLOB NOT NULL UNIQUE,
    mls_group_id BLOB NOT NULL REFERENCES groups ON DELETE CASCADE,
    event TEXT NOT NULL,
    received_at INTEGER NOT NULL,
    stored INTEGER NOT NULL,               -- 1: read back from a relay, not received live
    deferred INTEGER NOT NULL,
    sender BLOB,
    epoch INTEGER,
    label TEXT
);
CREATE INDEX held_by_group ON held (mls_group_id, deferred, number);

CREATE TABLE inbox (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    mls_group_id BLOB NOT NULL,
    event_id BLOB NOT NULL UNIQUE,
    sender BLOB NOT NULL,
    signature_key BLOB NOT NULL,
    epoch INTEGER NOT NULL,
    received_at INTEGER NOT NULL,
    body BLOB NOT NULL
);
