//! Keys, types and ranges, checked against the schema made from the types, in the
//! user's words.

use std::borrow::Cow;
use std::net::SocketAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use chrono_tz::Tz;
use schemars::generate::SchemaSettings;
use serde_json::Value as Json;
use url::Url;

use super::Config;
use super::document::{Node, Table, Value, join};
use super::problem::{Problem, cure, nearest};

/// The schema of the configuration, by section.
pub struct Types(Json);

impl Types {
    pub fn new() -> Self {
        let settings = SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true);
        Self(
            settings
                .into_generator()
                .into_root_schema_for::<Config>()
                .to_value(),
        )
    }

    /// The names of the sections, in the order of the type.
    pub fn sections(&self) -> impl Iterator<Item = &str> {
        self.0["properties"]
            .as_object()
            .into_iter()
            .flat_map(|map| map.keys().map(String::as_str))
    }

    /// The schema of a section's keys; of one entry's keys where entries have names.
    pub fn section(&self, name: &str) -> Option<&Json> {
        let section = property(&self.0, name)?;
        Some(
            section
                .get("additionalProperties")
                .filter(|s| s.is_object())
                .unwrap_or(section),
        )
    }

    /// The doc text of a section.
    pub fn doc(&self, section: &str) -> &str {
        property(&self.0, section).map(doc).unwrap_or_default()
    }

    /// Whether the section's entries have names, as `[providers.NAME]`.
    pub fn is_named(&self, section: &str) -> bool {
        property(&self.0, section).is_some_and(is_map)
    }

    /// How a section's header is written.
    pub fn header(&self, section: &str) -> String {
        if self.is_named(section) {
            format!("[{section}.NAME]")
        } else {
            format!("[{section}]")
        }
    }

    /// The schema of the value at a path of keys.
    pub fn at(&self, path: &[String]) -> Option<&Json> {
        let mut schema = &self.0;
        for key in path {
            schema = match property(schema, key) {
                Some(schema) => schema,
                None => schema
                    .get("additionalProperties")
                    .filter(|s| s.is_object())?,
            };
        }
        Some(schema)
    }

    /// The header under which a key belongs that is unknown where it was found.
    pub fn home_of(&self, key: &str) -> Option<String> {
        let mut homes = self.sections().filter(|name| {
            self.section(name)
                .is_some_and(|s| property(s, key).is_some())
        });
        let home = homes.next()?;
        homes.next().is_none().then(|| self.header(home))
    }
}

/// The schema of one key.
pub fn property<'a>(schema: &'a Json, key: &str) -> Option<&'a Json> {
    schema.get("properties")?.get(key)
}

/// The keys of a table's schema.
pub fn keys(schema: &Json) -> Vec<&str> {
    let properties = schema.get("properties").and_then(Json::as_object);
    properties
        .into_iter()
        .flat_map(|map| map.keys().map(String::as_str))
        .collect()
}

/// The doc text of a type or key.
pub fn doc(schema: &Json) -> &str {
    schema
        .get("description")
        .and_then(Json::as_str)
        .unwrap_or_default()
}

/// Whether the schema's keys are free, each with a value of one type.
pub fn is_map(schema: &Json) -> bool {
    schema
        .get("additionalProperties")
        .is_some_and(Json::is_object)
}

/// Whether keys beside the schema's own are allowed: those of a kind.
pub fn is_open(schema: &Json) -> bool {
    schema
        .get("additionalProperties")
        .and_then(Json::as_bool)
        .unwrap_or(false)
}

/// Whether values must never be printed.
pub fn is_secret(schema: &Json) -> bool {
    schema
        .get("writeOnly")
        .and_then(Json::as_bool)
        .unwrap_or(false)
}

/// Whether a value of this JSON type is allowed.
pub fn accepts(schema: &Json, kind: &str) -> bool {
    match schema.get("type") {
        Some(Json::String(one)) => one == kind,
        Some(Json::Array(many)) => many.iter().any(|one| one == kind),
        _ => {
            variants(schema)
                .iter()
                .any(|variant| accepts(variant, kind))
                || (kind == "string" && !choices(schema).is_empty())
        }
    }
}

fn variants(schema: &Json) -> &[Json] {
    let any = schema.get("anyOf").or_else(|| schema.get("oneOf"));
    any.and_then(Json::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default()
}

/// The words that are allowed, and what each means, for a key that takes a few words only.
pub fn choices(schema: &Json) -> Vec<(&str, &str)> {
    let own = schema
        .get("const")
        .and_then(Json::as_str)
        .map(|word| (word, doc(schema)));
    let listed = schema
        .get("enum")
        .and_then(Json::as_array)
        .into_iter()
        .flatten();
    let listed = listed.filter_map(Json::as_str).map(|word| (word, ""));
    let nested = variants(schema).iter().flat_map(choices);
    own.into_iter().chain(listed).chain(nested).collect()
}

/// What a value should look like.
pub fn wanted(schema: &Json) -> String {
    let words = choices(schema);
    let format = schema.get("format").and_then(Json::as_str);
    if !words.is_empty() {
        let words: Vec<_> = words
            .iter()
            .map(|(word, _)| format!("\"{word}\""))
            .collect();
        format!("one of {}", words.join(", "))
    } else if format == Some("duration") {
        "a duration in quotes, such as \"30s\" or \"12h\"".to_owned()
    } else if accepts(schema, "string") {
        "text in quotes".to_owned()
    } else if accepts(schema, "integer") {
        format!("a whole number{}", range(schema))
    } else if accepts(schema, "number") {
        format!("a number{}", range(schema))
    } else if accepts(schema, "boolean") {
        "true or false".to_owned()
    } else if accepts(schema, "array") {
        match schema.get("items") {
            Some(items) if accepts(items, "object") => "a list of tables, such as [{ … }]",
            _ => "a list of texts, such as [\"a\", \"b\"]",
        }
        .to_owned()
    } else {
        "a table, such as { key = \"value\" }".to_owned()
    }
}

fn limit(schema: &Json, key: &str) -> Option<f64> {
    schema.get(key).and_then(Json::as_f64)
}

fn range(schema: &Json) -> String {
    match (limit(schema, "minimum"), limit(schema, "maximum")) {
        (Some(min), Some(max)) => format!(" from {min} to {max}"),
        (Some(min), None) => format!(" of at least {min}"),
        (None, Some(max)) => format!(" of at most {max}"),
        (None, None) => String::new(),
    }
}

fn found(value: &Value, secret: bool) -> String {
    match value {
        Value::Text { .. } if secret => "text".to_owned(),
        Value::Text { shown, .. } => format!("the text \"{shown}\""),
        Value::Integer(_) | Value::Float(_) if secret => "a number".to_owned(),
        Value::Integer(number) => format!("the number {number}"),
        Value::Float(number) => format!("the number {number}"),
        Value::Boolean(flag) => format!("{flag}"),
        Value::Datetime(_) => "a date".to_owned(),
        Value::List(_) => "a list".to_owned(),
        Value::Table(_) => "a table".to_owned(),
    }
}

/// The check of one table and all inside it.
pub struct Check<'a> {
    /// All sections, to say where a misplaced key belongs.
    pub types: &'a Types,
    /// The schema that `$ref`s point into.
    pub root: &'a Json,
    /// Where problems go.
    pub out: &'a mut Vec<Problem>,
}

impl Check<'_> {
    /// Checks the whole document.
    pub fn document(&mut self, root: &Node) {
        if let Some(table) = root.as_table() {
            let types = self.types;
            self.table(root, table, &types.0, "", &[]);
        }
    }

    /// Checks a table's keys and values. `also_known` are keys for suggestions that belong
    /// to the table and are checked elsewhere.
    pub fn table(
        &mut self,
        node: &Node,
        table: &Table,
        schema: &Json,
        place: &str,
        also_known: &[&str],
    ) {
        let root = self.root;
        let schema = &*resolved(root, schema);
        for (key, value) in table {
            let inside = join(place, key);
            match property(schema, key).or_else(|| {
                schema
                    .get("additionalProperties")
                    .filter(|inner| inner.is_object())
            }) {
                Some(inner) => self.value(value, inner, &inside),
                None if is_open(schema) => {}
                None => {
                    let known = keys(schema).into_iter().chain(also_known.iter().copied());
                    let known: Vec<&str> = known.collect();
                    let cure = match self.types.home_of(key) {
                        Some(home) if nearest(key, known.iter().copied()).is_none() => {
                            format!("\"{key}\" belongs in {home}")
                        }
                        _ => cure(key, known),
                    };
                    let text = format!("unknown key; {cure}");
                    self.out.push(Problem::new(&value.origin, inside, text));
                }
            }
        }
        let required = schema
            .get("required")
            .and_then(Json::as_array)
            .into_iter()
            .flatten();
        for key in required
            .filter_map(Json::as_str)
            .filter(|key| !table.contains_key(*key))
        {
            let example = property(schema, key).map(example).unwrap_or_default();
            let text = format!("is missing; add {key} = {example}");
            self.out
                .push(Problem::new(&node.origin, join(place, key), text));
        }
    }

    fn value(&mut self, node: &Node, schema: &Json, place: &str) {
        let root = self.root;
        let schema = &*resolved(root, schema);
        // What stands in place of a table may be anything, so it is not repeated either.
        let secret = is_secret(schema) || accepts(schema, "object");
        let problem = match &node.value {
            Value::Text { text, shown } if accepts(schema, "string") => {
                text_problem(text, shown, schema)
            }
            Value::Integer(number) if accepts(schema, "integer") || accepts(schema, "number") => {
                // Settings are far below 2^53.
                let number_as_float = *number as f64;
                let low = limit(schema, "minimum").is_some_and(|min| number_as_float < min);
                let high = limit(schema, "maximum").is_some_and(|max| number_as_float > max);
                (low || high).then(|| format!("{number} is out of range; write {}", wanted(schema)))
            }
            Value::Float(_) if accepts(schema, "number") => None,
            Value::Boolean(_) if accepts(schema, "boolean") => None,
            Value::List(items) if accepts(schema, "array") => {
                if let Some(inner) = schema.get("items") {
                    for (i, item) in items.iter().enumerate() {
                        self.value(item, inner, &format!("{place}[{i}]"));
                    }
                }
                None
            }
            Value::Table(table) if accepts(schema, "object") => {
                self.table(node, table, schema, place, &[]);
                None
            }
            // A schema without a type takes anything.
            _ if schema.as_object().is_none_or(|map| {
                !["type", "anyOf", "oneOf", "enum", "const"]
                    .iter()
                    .any(|k| map.contains_key(*k))
            }) =>
            {
                None
            }
            other => Some(format!(
                "expected {}, found {}",
                wanted(schema),
                found(other, secret)
            ))
            .map(|text| match quoted(other, schema) {
                Some(cure) => format!("{text}; write {cure}"),
                None => text,
            }),
        };
        if let Some(text) = problem {
            self.out.push(Problem::new(&node.origin, place, text));
        }
    }
}

/// The schema itself, or the one under `root` that it refers to, with its own words first:
/// the doc text and the default stand beside the reference.
pub fn resolved<'a>(root: &'a Json, schema: &'a Json) -> Cow<'a, Json> {
    let target = schema.get("$ref").and_then(Json::as_str);
    let pointer = target.and_then(|target| target.strip_prefix('#'));
    let Some(target) = pointer.and_then(|pointer| root.pointer(pointer)) else {
        return Cow::Borrowed(schema);
    };
    let own = schema.as_object().filter(|own| own.len() > 1);
    match (own, target.as_object()) {
        (Some(own), Some(target)) => {
            let mut merged = target.clone();
            merged.extend(own.clone());
            Cow::Owned(Json::Object(merged))
        }
        _ => Cow::Borrowed(target),
    }
}

/// The value as it was probably meant, where that is clear.
fn quoted(value: &Value, schema: &Json) -> Option<String> {
    match value {
        Value::Integer(number)
            if schema.get("format").and_then(Json::as_str) == Some("duration") =>
        {
            Some(format!("\"{number}s\" for seconds"))
        }
        Value::Text { shown, .. }
            if accepts(schema, "integer") && shown.parse::<i64>().is_ok()
                || accepts(schema, "boolean") && ["true", "false"].contains(&shown.as_str()) =>
        {
            Some(format!("{shown} without quotes"))
        }
        Value::Text { shown, .. } if accepts(schema, "array") && !is_secret(schema) => {
            let items = schema
                .get("items")
                .is_some_and(|items| accepts(items, "string"));
            items.then(|| format!("[\"{shown}\"]"))
        }
        _ => None,
    }
}

/// An example of a value, as TOML.
pub fn example(schema: &Json) -> String {
    let given = schema.get("examples").and_then(|examples| examples.get(0));
    match given {
        Some(value) => to_toml(value),
        None => choices(schema)
            .first()
            .map_or("…".to_owned(), |(word, _)| format!("\"{word}\"")),
    }
}

/// A JSON value written as inline TOML.
pub fn to_toml(value: &Json) -> String {
    match value {
        Json::Array(items) => {
            format!(
                "[{}]",
                items.iter().map(to_toml).collect::<Vec<_>>().join(", ")
            )
        }
        Json::Object(map) if map.is_empty() => "{}".to_owned(),
        Json::Object(map) => {
            let pairs = map
                .iter()
                .map(|(key, value)| format!("{key} = {}", to_toml(value)));
            format!("{{ {} }}", pairs.collect::<Vec<_>>().join(", "))
        }
        other => other.to_string(),
    }
}

fn text_problem(text: &str, shown: &str, schema: &Json) -> Option<String> {
    let words = choices(schema);
    if !words.is_empty() {
        let known = words.iter().map(|(word, _)| *word);
        let unknown = !known.clone().any(|word| word == text);
        return unknown.then(|| format!("\"{shown}\" is not allowed; {}", cure(shown, known)));
    }
    if text.is_empty() && schema.get("minLength").is_some() {
        return Some(format!(
            "\"{shown}\" is empty; give it a value or remove the key"
        ));
    }
    match schema.get("format").and_then(Json::as_str)? {
        "duration" => duration_problem(text, shown, schema),
        "socket-address" => text.parse::<SocketAddr>().err().map(|_| {
            let cure =
                "write an IP address and a port, such as \"127.0.0.1:9464\" or \"[::1]:9464\"";
            format!("\"{shown}\" is not an address to listen on; {cure}")
        }),
        "time-zone" => text.parse::<Tz>().err().map(|_| {
            let zones = chrono_tz::TZ_VARIANTS.iter().map(|zone| zone.name());
            let cure = match nearest(shown, zones) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => "write one such as \"UTC\" or \"Europe/Paris\"".to_owned(),
            };
            format!("\"{shown}\" is not an IANA time zone; {cure}")
        }),
        "url" => url_problem(text),
        "issuer" => url_problem(text).or_else(|| {
            text.contains('?').then(|| {
                "an issuer has no query (RFC 8414 section 2); remove it from \"?\" on".to_owned()
            })
        }),
        "store-url" => store_problem(text),
        "key" => (STANDARD.decode(text.trim()).map(|key| key.len()) != Ok(32)).then(|| {
            "is not 32 bytes as base64; make one with: openssl rand -base64 32".to_owned()
        }),
        _ => None,
    }
}

fn duration_problem(text: &str, shown: &str, schema: &Json) -> Option<String> {
    let Ok(duration) = humantime::parse_duration(text) else {
        return Some(format!(
            "\"{shown}\" is not a duration; write numbers with units, such as \"30s\", \"10m\" \
             or \"1h 30m\""
        ));
    };
    let bound = |i: usize| schema.get("x-range")?.get(i)?.as_str();
    let (low, high) = (bound(0)?, bound(1)?);
    let parse = |text: &str| humantime::parse_duration(text).ok();
    let outside = parse(low).is_some_and(|low| duration < low)
        || parse(high).is_some_and(|high| duration > high);
    outside.then(|| format!("\"{shown}\" is out of range; write a duration from {low} to {high}"))
}

/// What is wrong with the URL of an endpoint. It is not printed: it may hold a password.
fn url_problem(text: &str) -> Option<String> {
    const FORM: &str = "write one such as \"https://login.acme.example/oauth/token\"";
    let Ok(url) = Url::parse(text) else {
        return Some(format!("is not a URL; {FORM}"));
    };
    if !["http", "https"].contains(&url.scheme()) {
        Some(format!("is not an http or https URL; {FORM}"))
    } else if !url.username().is_empty() || url.password().is_some() {
        Some(
            "has a user name or password in the URL; use client_id and client_secret_file"
                .to_owned(),
        )
    } else if url.fragment().is_some() {
        Some(
            "has a fragment, which endpoints never have (RFC 6749 section 3.2); remove it from \
             \"#\" on"
                .to_owned(),
        )
    } else {
        None
    }
}

/// What is wrong with the URL of the store. It is not printed: it may hold a password.
fn store_problem(text: &str) -> Option<String> {
    let problem = if text.starts_with("postgres://") || text.starts_with("postgresql://") {
        "Postgres is not yet supported; write \"sqlite:\" and a path"
    } else {
        match text.strip_prefix("sqlite:") {
            None => "is not a store; write \"sqlite:\" and a path, such as \"sqlite:perennial.db\"",
            Some(path) if path.trim_start_matches('/').is_empty() => {
                "has no path; write one, such as \"sqlite:perennial.db\""
            }
            Some(path) if path.contains(":memory:") => {
                "a store in memory loses every rotated refresh token at exit; write a path, such \
                 as \"sqlite:perennial.db\""
            }
            Some(path) if path.contains('?') => "takes no options; remove everything from \"?\" on",
            Some(_) => return None,
        }
    };
    Some(problem.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without this a key would take any text, and no error would say so.
    #[test]
    fn every_format_is_checked() {
        fn formats(schema: &Json, all: &mut Vec<String>) {
            match schema {
                Json::Object(map) => {
                    if let Some(format) = map.get("format").and_then(Json::as_str) {
                        all.push(format.to_owned());
                    }
                    map.values().for_each(|inner| formats(inner, all));
                }
                Json::Array(items) => items.iter().for_each(|inner| formats(inner, all)),
                _ => {}
            }
        }
        let mut all = Vec::new();
        formats(&Types::new().0, &mut all);
        assert!(all.len() > 10, "{all:?}");
        for format in all.iter().filter(|format| *format != "uint32") {
            let schema = serde_json::json!({ "format": format });
            assert!(
                text_problem("\u{1}", "\u{1}", &schema).is_some(),
                "{format}"
            );
        }
    }

    #[test]
    fn secrets_are_marked() {
        let types = Types::new();
        for path in [["store", "key"], ["providers", "client_secret"]] {
            let schema = types
                .section(path[0])
                .and_then(|section| property(section, path[1]));
            assert!(schema.is_some_and(is_secret), "{path:?}");
        }
    }

    /// The words of the reference.
    #[test]
    fn every_key_has_a_doc_comment() {
        let types = Types::new();
        for section in types.sections() {
            assert!(!types.doc(section).is_empty(), "{section}");
            let schema = types.section(section).unwrap();
            for key in keys(schema) {
                assert!(
                    !doc(property(schema, key).unwrap()).is_empty(),
                    "{section}.{key}"
                );
            }
        }
    }

    #[test]
    fn urls_are_never_repeated() {
        for url in [
            "https://u:hunter2@a.example/",
            "hunter2",
            "ftp://a/hunter2",
            "https://a/#hunter2",
        ] {
            let text = url_problem(url).unwrap();
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}
