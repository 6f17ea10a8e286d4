//! Members who break the rules: OpenMLS lets them, so the receiver must not.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;

use nostr::{Event, Keys};
use openmls::group::MlsGroup;
use openmls::prelude::{
    BasicCredential, Credential, CredentialWithKey, Extension, LeafNodeIndex, LeafNodeParameters,
    NewSignerBundle, UnknownExtension,
};
use openmls_basic_credential::SignatureKeyPair;
use openmls_traits::OpenMlsProvider as _;
use tls_codec::Serialize as _;

use crate::common::{Clock, Peer, group};
use crate::error::CommitError;
use crate::ids::{MlsGroupId, timestamp};
use crate::merge::load;
use crate::rules::{CommitRefusal, group_data};
use crate::stage::{Plan, commit, current_exporter};
use crate::storage::rows;
use crate::storage::work::Work;
use crate::wire::{CIPHERSUITE, EXT_GROUP_DATA, group_event};
use crate::{Inbound, Invalid};

/// An event with whatever MLS message `make` makes, in the peer's current epoch. Nothing is kept.
fn forge(
    peer: &mut Peer,
    group: &MlsGroupId,
    clock: &Clock,
    make: impl FnOnce(&Work<'_>, &mut MlsGroup) -> Vec<u8>,
) -> Event {
    let mut made = None;
    let undone = peer.transact(|work| {
        let row = rows::group(work.db, group)?.unwrap();
        let mut mls = load(work, group)?;
        let message = make(work, &mut mls);
        let exporter = current_exporter(work, &row)?;
        made = group_event::seal(&exporter, row.nostr_group_id, &message, timestamp(clock.0)).ok();
        Err::<(), _>(CommitError::Nothing)
    });
    assert!(matches!(undone, Err(CommitError::Nothing)), "{undone:?}");
    made.unwrap()
}

fn refusal(peer: &mut Peer, event: &Event, clock: &Clock) -> CommitRefusal {
    match &peer.take(event, clock).0[..] {
        [
            Inbound::CommitRefused {
                reason,
                peers_may_follow: false,
                ..
            },
        ] => *reason,
        other => panic!("{other:?}"),
    }
}

fn planned(plan: Plan) -> impl FnOnce(&Work<'_>, &mut MlsGroup) -> Vec<u8> {
    |work, mls| commit(work, mls, plan).unwrap().0
}

#[test]
fn a_plain_member_can_neither_add_nor_remove_nor_rename() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(3, 1, &mut clock);
    let stranger = Peer::new().key_package(clock.0);
    let mut data = peers[0].group_info(&group).unwrap().unwrap().data;
    data.admins.insert(peers[1].npub());
    let plans = [
        Plan {
            adds: vec![stranger],
            ..Plan::default()
        },
        Plan {
            removes: vec![LeafNodeIndex::new(0)],
            ..Plan::default()
        },
        Plan {
            data: Some(data),
            ..Plan::default()
        },
    ];
    let epoch = peers[2].group_info(&group).unwrap().unwrap().epoch;
    for plan in plans {
        let event = forge(&mut peers[1], &group, &clock, planned(plan));
        assert_eq!(
            refusal(&mut peers[2], &event, &clock),
            CommitRefusal::NotAdmin
        );
    }
    assert_eq!(peers[2].group_info(&group).unwrap().unwrap().epoch, epoch);
    // The refused ones left nothing behind: the group goes on.
    let event = peers[1].say(&group, "{}", &clock);
    assert_eq!(peers[2].take(&event, &clock).1.len(), 1);
}

#[test]
fn the_admin_set_never_becomes_empty_or_absent_from_the_group() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(2, 1, &mut clock);
    let data = peers[0].group_info(&group).unwrap().unwrap().data;
    for admins in [
        BTreeSet::new(),
        BTreeSet::from([Keys::generate().public_key()]),
    ] {
        let mut data = data.clone();
        data.admins = admins;
        let plan = Plan {
            data: Some(data),
            ..Plan::default()
        };
        let event = forge(&mut peers[0], &group, &clock, planned(plan));
        assert_eq!(
            refusal(&mut peers[1], &event, &clock),
            CommitRefusal::NoAdmin
        );
    }
}

#[test]
fn group_data_must_stay_readable() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(2, 1, &mut clock);
    let event = forge(&mut peers[0], &group, &clock, |work, mls| {
        let mut extensions = mls.extensions().clone();
        let mut bytes = group_data(&extensions).unwrap().encode().unwrap();
        bytes.push(0);
        extensions
            .add_or_replace(Extension::Unknown(EXT_GROUP_DATA, UnknownExtension(bytes)))
            .unwrap();
        mls.commit_builder()
            .propose_group_context_extensions(extensions)
            .unwrap()
            .load_psks(work.provider.storage())
            .unwrap()
            .build(
                work.provider.rand(),
                work.provider.crypto(),
                &work.me.signer,
                |_| true,
            )
            .unwrap()
            .stage_commit(&work.provider)
            .unwrap()
            .commit()
            .tls_serialize_detached()
            .unwrap()
    });
    assert_eq!(
        refusal(&mut peers[1], &event, &clock),
        CommitRefusal::GroupData
    );
}

/// A self-update that changes credential and key.
fn become_somebody(credential: Credential) -> impl FnOnce(&Work<'_>, &mut MlsGroup) -> Vec<u8> {
    |work, mls| {
        let signer = SignatureKeyPair::new(CIPHERSUITE.signature_algorithm()).unwrap();
        let bundle = NewSignerBundle {
            signer: &signer,
            credential_with_key: CredentialWithKey {
                credential,
                signature_key: signer.public().into(),
            },
        };
        mls.self_update_with_new_signer(
            &work.provider,
            &work.me.signer,
            bundle,
            LeafNodeParameters::default(),
        )
        .unwrap()
        .commit()
        .tls_serialize_detached()
        .unwrap()
    }
}

#[test]
fn a_leaf_never_changes_its_npub_and_a_new_key_is_reported() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(3, 1, &mut clock);
    let maker = BasicCredential::new(peers[0].npub().to_bytes().to_vec()).into();
    let event = forge(&mut peers[1], &group, &clock, become_somebody(maker));
    assert_eq!(
        refusal(&mut peers[2], &event, &clock),
        CommitRefusal::Identity
    );
    let nobody = BasicCredential::new(vec![0xff; 32]).into();
    let event = forge(&mut peers[1], &group, &clock, become_somebody(nobody));
    assert_eq!(
        refusal(&mut peers[2], &event, &clock),
        CommitRefusal::Identity
    );

    let himself = BasicCredential::new(peers[1].npub().to_bytes().to_vec()).into();
    let event = forge(&mut peers[1], &group, &clock, become_somebody(himself));
    let before = peers[2].roster_hash(&group).unwrap();
    let applied = peers[2].follow(&event, &clock);
    assert_eq!(applied.facts.rekeyed.len(), 1);
    assert_eq!(applied.facts.rekeyed[0].0, peers[1].npub());
    assert_ne!(applied.facts.rekeyed[0].1, peers[1].signature_key());
    assert_ne!(peers[2].roster_hash(&group).unwrap(), before);
}

#[test]
fn proposals_other_than_self_remove_are_not_stored() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(3, 2, &mut clock);
    let event = forge(&mut peers[1], &group, &clock, |work, mls| {
        mls.propose_remove_member(&work.provider, &work.me.signer, LeafNodeIndex::new(2))
            .unwrap()
            .0
            .tls_serialize_detached()
            .unwrap()
    });
    let (got, _) = peers[0].take(&event, &clock);
    assert!(
        matches!(
            &got[..],
            [Inbound::Invalid {
                reason: Invalid::Proposal,
                ..
            }]
        ),
        "{got:?}"
    );
    let staged = peers[0].self_update(&group, clock.0).unwrap();
    crate::common::publish(&mut peers, 0, &staged, &clock);
}

#[test]
fn a_message_that_claims_another_author_or_is_no_json_is_consumed_and_refused() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(2, 1, &mut clock);
    let other = Keys::generate().public_key().to_hex();
    let own = peers[1].npub().to_hex();
    let rumor = |author: &str, rest: &str| {
        format!(
            "{{\"pubkey\":\"{author}\",\"created_at\":1,\"kind\":9,\"tags\":[],\"content\":\"x\"{rest}}}"
        )
    };
    let payloads = [
        rumor(&other, ""),
        rumor(&own, &format!(",\"id\":\"{}\"", "0".repeat(64))),
        rumor(&own, &format!(",\"sig\":\"{}\"", "0".repeat(128))),
        rumor(&own, "").replace("[]", "[[\"h\",\"00\"]]"),
        "[1]".into(),
        "no json".into(),
    ];
    for payload in payloads {
        let event = forge(&mut peers[1], &group, &clock, |work, mls| {
            mls.create_message(&work.provider, &work.me.signer, payload.as_bytes())
                .unwrap()
                .tls_serialize_detached()
                .unwrap()
        });
        // Forging leaves the ratchet as it was; the receiver's must move, so each needs its own sender key.
        peers[1].say(&group, "{}", &clock);
        let (got, bodies) = peers[0].take(&event, &clock);
        assert!(
            matches!(
                &got[..],
                [Inbound::Invalid {
                    reason: Invalid::Payload(_),
                    ..
                }]
            ),
            "{payload}: {got:?}"
        );
        assert!(bodies.is_empty());
    }
    for bare in ["{\"a\":1}".to_owned(), rumor(&own, "")] {
        let event = forge(&mut peers[1], &group, &clock, |work, mls| {
            mls.create_message(&work.provider, &work.me.signer, bare.as_bytes())
                .unwrap()
                .tls_serialize_detached()
                .unwrap()
        });
        peers[1].say(&group, "{}", &clock);
        assert_eq!(peers[0].take(&event, &clock).1.len(), 1);
    }
}

#[test]
fn garbage_under_the_right_key_is_refused_and_forgotten() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(2, 1, &mut clock);
    for bytes in [vec![], vec![0; 3], vec![0xff; 4096], vec![0, 1, 0, 2]] {
        let event = forge(&mut peers[1], &group, &clock, |_, _| bytes);
        let (got, _) = peers[0].take(&event, &clock);
        assert!(
            matches!(
                &got[..],
                [Inbound::Invalid {
                    reason: Invalid::Mls | Invalid::Event(_),
                    ..
                }]
            ),
            "{got:?}"
        );
    }
    // A replayed MLS message in a new event: its key is gone.
    let mut message = Vec::new();
    let event = forge(&mut peers[1], &group, &clock, |work, mls| {
        message = mls
            .create_message(&work.provider, &work.me.signer, b"{}")
            .unwrap()
            .tls_serialize_detached()
            .unwrap();
        message.clone()
    });
    assert_eq!(peers[0].take(&event, &clock).1.len(), 1);
    let replay = forge(&mut peers[1], &group, &clock, |_, _| message);
    let (got, _) = peers[0].take(&replay, &clock);
    assert!(
        matches!(
            &got[..],
            [Inbound::Invalid {
                reason: Invalid::Unauthentic,
                ..
            }]
        ),
        "{got:?}"
    );
}

#[test]
fn strangers_cannot_fill_the_disk_or_freeze_a_healthy_group() {
    let mut clock = Clock::start();
    let (mut peers, group) = group(2, 1, &mut clock);
    let address = peers[0].group_info(&group).unwrap().unwrap().nostr_group_id;
    let secret = group_event::ExporterSecret::new([9; 32]);
    let limit = peers[0].me.held.events as usize;
    for _ in 0..limit + 20 {
        let event = group_event::seal(&secret, address, b"noise", timestamp(clock.0)).unwrap();
        let (got, _) = peers[0].take(&event, &clock);
        assert!(matches!(&got[..], [Inbound::Kept { .. }]), "{got:?}");
    }
    let held: i64 = peers[0]
        .db
        .query_row("SELECT count(*) FROM held", [], |row| row.get(0))
        .unwrap();
    assert_eq!(held as usize, limit);
    peers[0].say(&group, "{}", &clock);

    // Few of them, and large.
    peers[0].me.held.bytes = 400_000;
    let noise = vec![7; 100_000];
    for _ in 0..5 {
        let event = group_event::seal(&secret, address, &noise, timestamp(clock.0)).unwrap();
        let (got, _) = peers[0].take(&event, &clock);
        assert!(
            matches!(&got[..], [Inbound::Kept { gave_way: 1.., .. }]),
            "{got:?}"
        );
    }
    let (held, bytes): (i64, i64) = peers[0]
        .db
        .query_row("SELECT count(*), sum(length(event)) FROM held", [], |row| {
            Ok((row.get(0)?, row.get(1)?))
        })
        .unwrap();
    assert!(
        held >= 2 && bytes <= 400_000,
        "{held} events, {bytes} bytes"
    );
    peers[0].say(&group, "{}", &clock);
}
