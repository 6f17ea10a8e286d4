//! The unsigned tokens that the emulator takes for those of Firebase Auth.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

/// The token of a user with these custom claims.
pub fn token(claims: &Value) -> String {
    let mut all = json!({
        "iss": "https://securetoken.google.com/keyturn-test",
        "aud": "keyturn-test",
        "sub": "somebody",
        "user_id": "somebody",
        "iat": 1_760_000_000,
        "exp": 4_000_000_000_u64,
        "firebase": { "sign_in_provider": "password", "identities": {} },
    });
    for (name, value) in claims.as_object().unwrap() {
        all[name] = value.clone();
    }
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!(
        "{}.{}.",
        part(&json!({ "alg": "none", "typ": "JWT" })),
        part(&all)
    )
}
