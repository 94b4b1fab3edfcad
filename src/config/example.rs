//! A complete commented example, made from the docs of the types and kinds.

use serde_json::Value as Json;

use super::shape::{self, Types};
use super::{Kind, Kinds};

/// A section, the name of its entry, and the keys that are set.
type Live = (
    &'static str,
    &'static str,
    &'static [(&'static str, &'static str)],
);

/// The live part. It needs `YOTO_CLIENT_ID` in the environment.
const LIVE: [Live; 3] = [
    (
        "providers",
        "yoto",
        &[("preset", "yoto"), ("client_id", "${YOTO_CLIENT_ID}")],
    ),
    ("credentials", "family-player", &[("provider", "yoto")]),
    ("jobs", "token-refresh", &[("kind", "token_refresh")]),
];

const HEAD: &str = "\
# The configuration of Perennial, complete: each key with its meaning and its default.
#
# A line \"# key = value\" shows the default, or an example where there is none; remove the
# \"# \" to change it. In any text, ${VAR} stands for an environment variable, also from .env;
# \"$${\" is a literal \"${\". Every key can be set by the environment alone:
# PERENNIAL_SERVER__LISTEN, PERENNIAL_PROVIDERS__YOTO__CLIENT_ID. Paths are relative to the
# working directory. \"perennial check\" finds all mistakes at once.
";

/// A whole configuration file: every section and key with its doc text, defaults as
/// comments, and a small live part that loads when `YOTO_CLIENT_ID` is set.
pub fn example(kinds: &Kinds) -> String {
    let types = Types::new();
    let mut out = HEAD.to_owned();
    for section in types.sections() {
        out.truncate(out.trim_end().len());
        out.push_str("\n\n");
        prose(&mut out, types.doc(section));
        let live = LIVE.iter().find(|(name, ..)| *name == section);
        let (header, set) = match live {
            Some((_, name, set)) => (format!("{section}.{name}"), *set),
            None => (section.to_owned(), &[][..]),
        };
        out.push_str(&format!("[{header}]\n"));
        let schema = types.section(section).unwrap_or(&Json::Null);
        for key in shape::keys(schema)
            .into_iter()
            .filter(|key| *key != "sinks")
        {
            let value = set
                .iter()
                .find(|(name, _)| *name == key)
                .map(|(_, value)| *value);
            write_key(&mut out, schema, key, value);
        }
        let kind = set
            .iter()
            .find(|(key, _)| *key == "kind")
            .map(|(_, kind)| *kind);
        match section {
            "credentials" => {
                let doc = shape::property(schema, "sinks")
                    .map(shape::doc)
                    .unwrap_or_default();
                prose(&mut out, doc);
                out.push('\n');
                for kind in &kinds.sinks {
                    write_kind(&mut out, kind, &format!("# [[{header}.sinks]]"));
                }
            }
            "jobs" => {
                for own in kinds.jobs.iter().filter(|own| Some(own.name) == kind) {
                    prose(
                        &mut out,
                        &format!("Keys of the kind {}: {}", own.name, own.summary),
                    );
                    out.push('\n');
                    let schema = (own.schema)();
                    for key in shape::keys(schema.as_value()) {
                        write_key(&mut out, schema.as_value(), key, None);
                    }
                }
                for other in kinds.jobs.iter().filter(|other| Some(other.name) != kind) {
                    write_kind(&mut out, other, "# [jobs.NAME]");
                }
            }
            _ => {}
        }
    }
    out.truncate(out.trim_end().len());
    out.push('\n');
    out
}

/// A kind that is not in use: an example and its keys, wholly as comments.
fn write_kind(out: &mut String, kind: &Kind, header: &str) {
    prose(out, &format!("Kind {}: {}", kind.name, kind.summary));
    out.push_str(&format!("{header}\n# kind = \"{}\"\n", kind.name));
    for line in kind.example.lines().filter(|line| !line.trim().is_empty()) {
        out.push_str(&format!("# {line}\n"));
    }
    let schema = (kind.schema)();
    let schema = schema.as_value();
    for key in shape::keys(schema) {
        let Some(property) = shape::property(schema, key) else {
            continue;
        };
        let property = &shape::resolved(schema, property);
        let mut sentence = format!("{key}: {}", shape::doc(property));
        for (word, meaning) in shape::choices(property) {
            sentence.push_str(&format!(" \"{word}\": {meaning}"));
        }
        if let Some(default) = default(property) {
            sentence.push_str(&format!(" Default: {}.", shape::to_toml(default)));
        }
        prose(out, &sentence);
    }
    out.push('\n');
}

/// The doc text of a key, and the key: live with a value, else as a comment.
fn write_key(out: &mut String, table: &Json, key: &str, live: Option<&str>) {
    let Some(schema) = shape::property(table, key) else {
        return;
    };
    prose(out, shape::doc(schema));
    for (word, meaning) in shape::choices(schema) {
        let sentence = format!("\"{word}\": {meaning}");
        prose(out, sentence.trim_end_matches([' ', ':']));
    }
    match (live, default(schema)) {
        (Some(value), _) => out.push_str(&format!("{key} = \"{value}\"\n")),
        (None, Some(default)) => out.push_str(&format!("# {key} = {}\n", shape::to_toml(default))),
        (None, None) => out.push_str(&format!("# {key} = {}\n", shape::example(schema))),
    }
    out.push('\n');
}

/// The default of a key, where it shows the key's form; else an example is better.
fn default(schema: &Json) -> Option<&Json> {
    schema.get("default").filter(|default| match default {
        Json::Null => false,
        Json::Array(items) => !items.is_empty(),
        Json::Object(map) => !map.is_empty(),
        _ => true,
    })
}

/// Doc text as comment lines of at most 92 characters.
fn prose(out: &mut String, text: &str) {
    for paragraph in text
        .split("\n\n")
        .filter(|paragraph| !paragraph.trim().is_empty())
    {
        let mut line = String::from("#");
        for word in paragraph.replace('`', "").split_whitespace() {
            if line.chars().count() + word.chars().count() >= 92 {
                out.push_str(&line);
                out.push('\n');
                line = String::from("#");
            }
            line.push(' ');
            line.push_str(word);
        }
        out.push_str(&line);
        out.push('\n');
    }
}
