//! `docs/generated/documents.md`: every collection and every field, for people. Made from the same schemas as the files in `schema/`.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::collections;

const HEAD: &str = "# Documents in Firestore

Made from the types by `cargo test -p keyturn-store --test generated`; do not edit. The same as JSON Schemas: [firestore-schema/schema](../../firestore-schema/schema).

Times are Firestore timestamps with whole milliseconds (in the JSON Schemas, and in the embedded store: unix milliseconds). A field without a value is there, and null. Who may read: the
relay and the verifier with IAM ([google-cloud.md](../google-cloud.md)); beside them auditors where it says so ([auditors.md](../auditors.md)), and nobody else.
";

/// The page.
#[must_use]
pub fn page() -> String {
    let mut text = HEAD.to_owned();
    for collection in collections::ALL {
        let Some(file) = collection.schema else {
            continue;
        };
        let above = collection.parent.map(|it| format!("{it}/…/"));
        let above = above.unwrap_or_default();
        let readers = if collection.auditors {
            " Auditors read it."
        } else {
            ""
        };
        let (id, holds) = (collection.id, collection.holds);
        text.push_str(&format!(
            "\n## `{above}{id}`\n{holds}.{readers} [{file}](../../firestore-schema/schema/{file})\n\n"
        ));
        text.push_str("| field | type | what it says |\n|---|---|---|\n");
        for (name, schema) in super::all() {
            if name == file {
                let schema = schema.as_value();
                Rows { root: schema }.of(schema, "", &mut text);
            }
        }
    }
    text
}

/// The rows of one document.
struct Rows<'s> {
    root: &'s Value,
}

impl<'s> Rows<'s> {
    /// One row for every property, and for those inside.
    fn of(&self, schema: &'s Value, prefix: &str, text: &mut String) {
        let mut fields: BTreeMap<&str, Vec<&'s Value>> = BTreeMap::new();
        for object in alternatives(schema) {
            for (name, property) in object["properties"].as_object().into_iter().flatten() {
                fields.entry(name).or_default().push(property);
            }
        }
        for (name, shapes) in fields {
            let path = format!("{prefix}{name}");
            let types = once(shapes.iter().map(|it| self.type_of(it)));
            let says = once(shapes.iter().map(|it| self.says(it)));
            text.push_str(&format!("| `{path}` | {types} | {says} |\n"));
            if let Some((inner, below)) = shapes.iter().find_map(|it| self.inside(it)) {
                self.of(inner, &format!("{path}{below}"), text);
            }
        }
    }

    /// What the field says of itself; where that is only a link to its type, what the type says.
    fn says(&self, property: &'s Value) -> String {
        let own = property["description"].as_str().unwrap_or_default();
        let link = own.starts_with("See [`") && own.ends_with("`].");
        let of_type = self.found(property)["description"].as_str();
        plain(if link { of_type.unwrap_or(own) } else { own })
    }

    /// The map that a field holds, or that the elements of its list are.
    fn inside(&self, property: &'s Value) -> Option<(&'s Value, &'static str)> {
        let found = self.found(property);
        if found["type"] == "array" {
            return self.inside(&found["items"]).map(|(it, _)| (it, "[]."));
        }
        let map = |it: &&Value| it["properties"].is_object();
        alternatives(found).iter().any(map).then_some((found, "."))
    }

    /// What a reference, or a thing that may be null, stands for.
    fn found(&self, schema: &'s Value) -> &'s Value {
        if let Some(name) = schema["$ref"].as_str().and_then(|it| it.rsplit('/').next()) {
            return self.found(&self.root["$defs"][name]);
        }
        let some = |it: &&Value| it["type"] != "null";
        match schema["anyOf"]
            .as_array()
            .and_then(|all| all.iter().find(some))
        {
            Some(one) => self.found(one),
            None => schema,
        }
    }

    fn type_of(&self, property: &'s Value) -> String {
        let null = |it: &Value| it == "null" || it["type"] == "null";
        let nullable = ["anyOf", "type"]
            .iter()
            .filter_map(|key| property[*key].as_array())
            .any(|all| all.iter().any(null));
        let or_null = if nullable { " or null" } else { "" };
        format!("{}{or_null}", self.bare_type(property))
    }

    fn bare_type(&self, property: &'s Value) -> String {
        let time = |it: &Value| it["$ref"] == "#/$defs/UnixMs";
        let either = property["anyOf"].as_array();
        if time(property) || either.is_some_and(|all| all.iter().any(time)) {
            return "timestamp".to_owned();
        }
        let found = self.found(property);
        once(alternatives(found).into_iter().map(|one| {
            let words = [&one["const"]].into_iter();
            let words = words.chain(one["enum"].as_array().into_iter().flatten());
            let words: Vec<&str> = words.filter_map(Value::as_str).collect();
            if !words.is_empty() {
                return format!("`{}`", words.join("`, `"));
            }
            match first_type(one) {
                "array" => format!("list of {}", self.bare_type(&one["items"])),
                "string" => "text".to_owned(),
                "integer" => "integer".to_owned(),
                "boolean" => "boolean".to_owned(),
                _ => "map".to_owned(),
            }
        }))
    }
}

/// Different words, in their order.
fn once(words: impl Iterator<Item = String>) -> String {
    let mut different: Vec<String> = Vec::new();
    for word in words {
        if !word.is_empty() && !different.contains(&word) {
            different.push(word);
        }
    }
    different.join(", ")
}

/// The shapes that something can have.
fn alternatives(schema: &Value) -> Vec<&Value> {
    match schema["oneOf"].as_array() {
        Some(all) => all.iter().collect(),
        None => vec![schema],
    }
}

fn first_type(schema: &Value) -> &str {
    match &schema["type"] {
        Value::String(one) => one,
        Value::Array(several) => several
            .iter()
            .filter_map(Value::as_str)
            .find(|it| *it != "null")
            .unwrap_or_default(),
        _ => "",
    }
}

/// Without the links that only rustdoc resolves, on one line.
fn plain(text: &str) -> String {
    text.replace("`None`", "null")
        .replace("[`", "`")
        .replace("`]", "`")
        .replace('\n', " ")
        .replace('|', "\\|")
}
