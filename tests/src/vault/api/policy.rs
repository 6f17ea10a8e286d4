//! Policies as Vault writes them: `path "…" { capabilities = […] }` with `+` for a segment and `*` at the end. The most specific rule decides.

/// The rules of one policy.
#[derive(Clone, Default)]
pub(super) struct Policy(Vec<(String, Vec<String>)>);

impl Policy {
    pub(super) fn parse(hcl: &str) -> Self {
        let code: String = hcl
            .lines()
            .filter(|line| !line.trim_start().starts_with('#'))
            .collect();
        let rules = code.split("path ").skip(1).map(|rule| {
            let mut quoted = rule.split('"').skip(1).step_by(2).map(str::to_owned);
            (quoted.next().unwrap(), quoted.collect())
        });
        Self(rules.collect())
    }

    /// Capabilities on a path.
    pub(super) fn of(&self, path: &str) -> Vec<String> {
        let matching = self.0.iter().filter(|(pattern, _)| matches(pattern, path));
        // Longer without a wildcard before longer with one.
        let best = matching.max_by_key(|(pattern, _)| {
            (
                !pattern.ends_with('*'),
                !pattern.contains('+'),
                pattern.len(),
            )
        });
        best.map(|(_, capabilities)| capabilities.clone())
            .unwrap_or_default()
    }
}

fn matches(pattern: &str, path: &str) -> bool {
    let (body, open) = match pattern.strip_suffix('*') {
        Some(body) => (body, true),
        None => (pattern, false),
    };
    if !body.contains('+') {
        return if open {
            path.starts_with(body)
        } else {
            path == body
        };
    }
    let (want, have): (Vec<_>, Vec<_>) = (body.split('/').collect(), path.split('/').collect());
    let long_enough = if open {
        have.len() >= want.len()
    } else {
        have.len() == want.len()
    };
    long_enough
        && want
            .iter()
            .zip(&have)
            .all(|(want, have)| want == &"+" || want == have)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_specific_rule_decides() {
        let policy = Policy::parse(
            "# a comment with path \"x\"\npath \"a/*\" { capabilities = [\"read\", \"list\"] }\npath \"a/+/c\" { capabilities = [\"deny\"] }\npath \"a/b\" {\n  capabilities = [\"update\"]\n}",
        );
        assert_eq!(policy.of("a/x"), ["read", "list"]);
        assert_eq!(policy.of("a/x/c"), ["deny"]);
        assert_eq!(policy.of("a/b"), ["update"]);
        assert!(policy.of("b").is_empty());
    }
}
