//! Everything that can be asked wrongly, with what must not be found of it.

use super::*;

/// Requests of bob's that fail, each with a proof or a code that must not show up.
pub(super) async fn everything_wrong(
    world: &mut World,
    relay: &Relay,
    group: &MlsGroupId,
) -> Vec<Wanted> {
    let mut bob = Rogue::open(world, "bob", relay).await;
    let mut wanted: Vec<Wanted> = [WRONG_CODE, CODE_AS_NUMBER, CODE_IN_RUINS]
        .map(|code| Wanted::code("a wrong code", code))
        .into();
    let mut request = async || {
        let id = RotationId::generate(now()).unwrap();
        let params = reason("to fail");
        let request = bob
            .compose(world, group, CLIENT, Action::Rotation, &id, &params)
            .await;
        wanted.extend(of_proof(&request.jwt_proof));
        request
    };
    let forged = ServiceRequest {
        jwt_proof: DevSigner::generate()
            .unwrap()
            .sign(json!({ "nonce": "forged" }), now())
            .unwrap(),
        ..request().await
    };
    let spoiled = request().await;
    let spoiled = ServiceRequest {
        jwt_proof: Bearer::new(spoil(spoiled.jwt_proof.expose())),
        ..spoiled
    };
    let wrong_code = ServiceRequest {
        totp: Some(Bearer::new(WRONG_CODE)),
        ..request().await
    };
    let mut number = to_json(&request().await);
    number["totp"] = CODE_AS_NUMBER.parse::<u32>().unwrap().into();
    let mut nested = to_json(&request().await);
    nested["jwt_proof"] = json!({ "value": nested["jwt_proof"] });
    let mut long = to_json(&request().await);
    long["totp"] = format!("{CODE_IN_RUINS} or so").into();
    let mut ruins = to_json(&request().await);
    ruins["totp"] = CODE_IN_RUINS.into();
    let ruins = ruins.to_string();
    wanted.extend(of_proof(&forged.jwt_proof));
    wanted.extend(of_proof(&spoiled.jwt_proof));

    // Cut off: no request any more, and not answered.
    bob.say(group, kinds::SERVICE_REQUEST, &ruins[..ruins.len() - 1])
        .await;
    for (name, text, class) in [
        (
            "forged",
            to_json(&forged).to_string(),
            ErrorClass::UnauthorizedRequest,
        ),
        (
            "spoiled",
            to_json(&spoiled).to_string(),
            ErrorClass::UnauthorizedRequest,
        ),
        (
            "wrong code",
            to_json(&wrong_code).to_string(),
            ErrorClass::UnauthorizedRequest,
        ),
        (
            "code as a number",
            number.to_string(),
            ErrorClass::PolicyViolation,
        ),
        (
            "proof in an object",
            nested.to_string(),
            ErrorClass::PolicyViolation,
        ),
        (
            "more than a code",
            long.to_string(),
            ErrorClass::PolicyViolation,
        ),
    ] {
        let event = bob.say(group, kinds::SERVICE_REQUEST, &text).await;
        assert_eq!(bob.refusal(event).await, class, "{name}");
    }
    wanted
}

pub(super) fn to_json(request: &ServiceRequest) -> Value {
    serde_json::to_value(request).unwrap()
}

/// A JWS with another signature.
pub(super) fn spoil(proof: &str) -> String {
    let at = proof.rfind('.').unwrap() + 1;
    let other = if proof[at..].starts_with('A') {
        "B"
    } else {
        "A"
    };
    format!("{}{other}{}", &proof[..at], &proof[at + 1..])
}
