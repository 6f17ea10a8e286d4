//! The list of scenarios, carried by nothing but a call.

use keyturn_store::documents::Actor;
use keyturn_store::store::AuditTrail as _;

use super::world::World;
use crate::admission::scenarios::{Expected, Scenario, scenarios};

#[tokio::test]
async fn every_scenario_ends_as_the_list_says() {
    let mut failures = Vec::new();
    for scenario in scenarios() {
        if let Err(what) = run(&scenario).await {
            failures.push(format!("{}: {what}", scenario.name));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

async fn run(scenario: &Scenario) -> Result<(), String> {
    let mut world = World::new().await;
    let (last, before) = scenario.attempts.split_last().unwrap();
    for attempt in before {
        let _ = world.send(attempt).await;
        world.now.0 += 1000;
    }
    let state = world.untouched().await;
    let records = world.refusals().await.len();
    let opened = world.opened(last);
    let verdict = world.admit(&opened, world.now).await;
    let refusals = world.refusals().await;
    let new = &refusals[records..];

    match (scenario.expected, verdict) {
        (Expected::Admitted, Ok(permit)) => {
            if permit.requester() != opened.sender || permit.event_id() != opened.event_id {
                return Err("the permit names somebody else".to_owned());
            }
            if !new.is_empty() {
                return Err(format!(
                    "an admitted request was recorded as refused: {new:?}"
                ));
            }
        }
        (Expected::Admitted, Err(refusal)) => return Err(format!("refused: {refusal:?}")),
        (Expected::Refused(..), Ok(_)) => return Err("admitted".to_owned()),
        (Expected::Refused(class, reason), Err(refusal)) => {
            if (refusal.class, refusal.reason) != (class, reason) {
                return Err(format!("{refusal:?} instead of {class} {reason}"));
            }
            let [record] = new else {
                return Err(format!("{} audit records", new.len()));
            };
            let actor = Actor::Admin {
                npub: opened.sender,
            };
            if (record.actor.clone(), record.reason.as_str()) != (actor, reason)
                || record.nostr_event.as_ref() != Some(&opened.event_id)
                || record.at != world.now
            {
                return Err(format!(
                    "the record does not say who, what, when, why: {record:?}"
                ));
            }
        }
    }
    if world.untouched().await != state {
        return Err("the store was changed".to_owned());
    }
    no_bearer_in_the_trail(&world, &opened.json).await
}

/// No token, not even its signature, and no code is kept.
async fn no_bearer_in_the_trail(world: &World, request: &str) -> Result<(), String> {
    let Ok(request) = serde_json::from_str::<serde_json::Value>(request) else {
        return Ok(());
    };
    let mut trail = world.store.read(None, 10_000).await.unwrap();
    for record in &mut trail {
        // The digits of a time could happen to be those of a code.
        record.at.0 = 0;
    }
    let trail = serde_json::to_string(&trail).unwrap();
    let proof = request["jwt_proof"].as_str().unwrap_or_default();
    let parts = proof.split('.').filter(|part| part.len() > 20);
    for bearer in parts.chain(request["totp"].as_str()) {
        if trail.contains(bearer) {
            return Err("the audit trail holds a bearer value".to_owned());
        }
    }
    Ok(())
}
