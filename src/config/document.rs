//! TOML text to a tree that remembers where each value was written.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::de::value::{self, MapDeserializer, SeqDeserializer};
use serde::de::{Deserializer, IntoDeserializer, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::environment::Environment;
use super::problem::{Origin, Problem};

/// The keys of a table. `BTreeMap`, so that everything that walks it is deterministic; boxes,
/// because it makes room for eleven at once, and ten thousand credentials have a key or two each.
pub type Table = BTreeMap<String, Box<Node>>;

/// A value and where it was written; for a value in a table, where its key was.
#[derive(Clone, Debug)]
pub struct Node {
    pub origin: Origin,
    pub value: Value,
}

#[derive(Clone, Debug)]
pub enum Value {
    /// `shown` is what errors may print: the text as the user wrote it, which is not the
    /// value where `${…}` stood for something that may be secret.
    Text {
        text: String,
        shown: String,
    },
    Integer(i64),
    Float(f64),
    Boolean(bool),
    Datetime(toml::value::Datetime),
    List(Vec<Node>),
    Table(Table),
}

impl Node {
    pub fn new(origin: &Origin, value: Value) -> Self {
        Self {
            origin: origin.clone(),
            value,
        }
    }

    pub fn text(origin: &Origin, text: impl Into<String>) -> Self {
        let text = text.into();
        Self::new(
            origin,
            Value::Text {
                shown: text.clone(),
                text,
            },
        )
    }

    pub fn table(origin: &Origin) -> Self {
        Self::new(origin, Value::Table(Table::new()))
    }

    pub fn as_text(&self) -> Option<&str> {
        match &self.value {
            Value::Text { text, .. } => Some(text),
            _ => None,
        }
    }

    pub fn as_list(&self) -> &[Node] {
        match &self.value {
            Value::List(items) => items,
            _ => &[],
        }
    }

    pub fn as_table(&self) -> Option<&Table> {
        match &self.value {
            Value::Table(table) => Some(table),
            _ => None,
        }
    }

    pub fn as_table_mut(&mut self) -> Option<&mut Table> {
        match &mut self.value {
            Value::Table(table) => Some(table),
            _ => None,
        }
    }

    pub fn get(&self, key: &str) -> Option<&Node> {
        self.as_table()?.get(key).map(|node| &**node)
    }

    /// The text under a key, when it is a text.
    pub fn get_text(&self, key: &str) -> Option<&str> {
        self.get(key)?.as_text()
    }
}

/// A table without its origins.
pub fn to_toml(table: &Table) -> toml::Table {
    let of_keys = table.iter().map(|(key, node)| {
        let value = toml::Value::deserialize(&**node).expect("every value is one of TOML");
        (key.clone(), value)
    });
    of_keys.collect()
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, value::Error> {
        match &self.value {
            Value::Text { text, .. } => visitor.visit_borrowed_str(text),
            Value::Integer(number) => visitor.visit_i64(*number),
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Boolean(flag) => visitor.visit_bool(*flag),
            // No setting is a date; where anything may stand, it stands as it was written.
            Value::Datetime(time) => visitor.visit_string(time.to_string()),
            Value::List(items) => visitor.visit_seq(SeqDeserializer::new(items.iter())),
            Value::Table(table) => {
                let keys = table.iter().map(|(key, node)| (key.as_str(), &**node));
                visitor.visit_map(MapDeserializer::new(keys))
            }
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, value::Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, value::Error> {
        visitor.visit_newtype_struct(self)
    }

    /// Every choice in a configuration is a word.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, value::Error> {
        let word = self.as_text().unwrap_or_default();
        visitor.visit_enum(word.into_deserializer())
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

impl<'de> IntoDeserializer<'de, value::Error> for &'de Node {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

/// The path of a key in a table, or of the table itself where `place` is empty.
pub fn join(place: &str, key: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    let key = match !key.is_empty() && key.chars().all(bare) {
        true => key.to_owned(),
        false => format!("{key:?}"),
    };
    if place.is_empty() {
        key
    } else {
        format!("{place}.{key}")
    }
}

/// Parses a file. A syntax error is one problem with line and column, without the text
/// of the line: it may hold a secret.
pub fn parse(name: &str, text: &str) -> Result<Node, Problem> {
    let source = Source::new(name, text);
    let table = DeTable::parse(text).map_err(|error| {
        let offset = error.span().map_or(0, |span| span.start).min(text.len());
        let before = &text.as_bytes()[..offset];
        let start = before
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |at| at + 1);
        let column = String::from_utf8_lossy(&before[start..]).chars().count() + 1;
        let message = error.message().replace('\n', ", ");
        Problem::new(
            &source.at(offset),
            format!("column {column}"),
            format!("not valid TOML: {message}; correct this line, nothing else was checked"),
        )
    })?;
    let origin = source.at(0);
    let value = Value::Table(source.table(table.into_inner())?);
    Ok(Node { origin, value })
}

/// One value written as in TOML, for an override that is no text.
pub fn parse_value(origin: &Origin, text: &str) -> Option<Node> {
    let value = DeValue::parse(text).ok()?;
    let source = Source::new("", text);
    let mut node = source.node(0, value.into_inner()).ok()?;
    relocate(&mut node, origin);
    Some(node)
}

/// Makes a value and all inside it come from `origin`.
pub fn relocate(node: &mut Node, origin: &Origin) {
    node.origin = origin.clone();
    match &mut node.value {
        Value::List(items) => items.iter_mut().for_each(|item| relocate(item, origin)),
        Value::Table(table) => table.values_mut().for_each(|item| relocate(item, origin)),
        _ => {}
    }
}

struct Source {
    name: Arc<str>,
    /// Where each line ends, in order.
    newlines: Vec<usize>,
}

impl Source {
    fn new(name: &str, text: &str) -> Self {
        Self {
            name: name.into(),
            newlines: text.match_indices('\n').map(|(at, _)| at).collect(),
        }
    }

    fn at(&self, offset: usize) -> Origin {
        Origin::File {
            name: self.name.clone(),
            offset,
            line: self.newlines.partition_point(|&end| end < offset) + 1,
        }
    }

    fn table(&self, table: DeTable<'_>) -> Result<Table, Problem> {
        table
            .into_iter()
            .map(|(key, value)| {
                let node = self.node(key.span().start, value.into_inner())?;
                Ok((key.into_inner().into_owned(), Box::new(node)))
            })
            .collect()
    }

    fn node(&self, offset: usize, value: DeValue<'_>) -> Result<Node, Problem> {
        let origin = self.at(offset);
        let value = match value {
            DeValue::String(text) => return Ok(Node::text(&origin, text)),
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
                .map(Value::Integer)
                .map_err(|_| {
                    let text = "a number too large for any setting; write a smaller one";
                    Problem::new(&origin, "", text)
                })?,
            // TOML's floats are a subset of what Rust parses.
            DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
            DeValue::Boolean(flag) => Value::Boolean(flag),
            DeValue::Datetime(time) => Value::Datetime(time),
            DeValue::Array(items) => Value::List(
                items
                    .into_iter()
                    .map(|item: Spanned<DeValue<'_>>| {
                        self.node(item.span().start, item.into_inner())
                    })
                    .collect::<Result<_, _>>()?,
            ),
            DeValue::Table(table) => Value::Table(self.table(table)?),
        };
        Ok(Node { origin, value })
    }
}

/// Replaces `${VAR}` in every text that a file holds. What a variable holds is taken as it
/// is.
pub fn interpolate(node: &mut Node, place: &str, env: &Environment, problems: &mut Vec<Problem>) {
    match &mut node.value {
        Value::Text { text, .. } if matches!(node.origin, Origin::File { .. }) => {
            match expand(text, env) {
                Ok(expanded) => *text = expanded,
                Err(message) => problems.push(Problem::new(&node.origin, place, message)),
            }
        }
        Value::List(items) => {
            for (i, item) in items.iter_mut().enumerate() {
                interpolate(item, &format!("{place}[{i}]"), env, problems);
            }
        }
        Value::Table(table) => {
            for (key, item) in table {
                interpolate(item, &join(place, key), env, problems);
            }
        }
        _ => {}
    }
}

/// The text with each `${VAR}` replaced by the variable's value and `$${` by `${`.
fn expand(text: &str, env: &Environment) -> Result<String, String> {
    const ESCAPE: &str = "write \"$${\" for a literal \"${\"";
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let (before, from) = rest.split_at(at);
        let after = &from[2..];
        if let Some(before) = before.strip_suffix('$') {
            out.push_str(before);
            out.push_str("${");
            rest = after;
            continue;
        }
        out.push_str(before);
        let Some((name, tail)) = after.split_once('}') else {
            return Err(format!("\"${{\" has no closing \"}}\"; {ESCAPE}"));
        };
        let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(word) {
            return Err(format!(
                "\"${{{name}}}\" does not name a variable; {ESCAPE}"
            ));
        }
        let value = env.get(name).ok_or_else(|| {
            format!("the variable {name} is not set; set it in the environment or in .env")
        })?;
        out.push_str(value);
        rest = tail;
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expands_variables() {
        let env = Environment::from([("A", "1"), ("B_2", "two"), ("NESTED", "${A}")]);
        for (text, expected) in [
            ("", ""),
            ("plain $ and $A and {A}", "plain $ and $A and {A}"),
            ("${A}", "1"),
            ("x${A}y${B_2}z", "x1ytwoz"),
            ("$${A}", "${A}"),
            ("$$ ${A}", "$$ 1"),
            ("é${A}é", "é1é"),
            ("${NESTED}", "${A}"),
        ] {
            assert_eq!(expand(text, &env).as_deref(), Ok(expected), "{text}");
        }
        for (text, part) in [
            ("${C}", "the variable C is not set"),
            ("${A", "no closing"),
            ("${}", "does not name a variable"),
            ("${A-b}", "does not name a variable"),
        ] {
            assert!(expand(text, &env).unwrap_err().contains(part), "{text}");
        }
    }

    #[test]
    fn a_syntax_error_has_line_and_column_and_no_content() {
        let problem = parse("p.toml", "[store]\nurl = \"x\"\nkey = \"hunter2\n").unwrap_err();
        let text = problem.to_string();
        assert!(text.starts_with("p.toml:3: column "), "{text}");
        assert!(!text.contains("hunter2"), "{text}");
    }

    #[test]
    fn places_are_toml_keys() {
        assert_eq!(join("", "store"), "store");
        assert_eq!(join("providers", "acme.eu"), "providers.\"acme.eu\"");
        assert_eq!(join("providers", ""), "providers.\"\"");
    }
}
