//! What is wrong with a configuration, where, and the cure.

use std::fmt;
use std::sync::Arc;

/// Where a piece of configuration was written. Sorts in the order in which a user
/// reads: files by position, then variables, then what was written nowhere.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// In a file.
    File {
        /// The file's name as given.
        name: Arc<str>,
        /// Bytes from its start.
        offset: usize,
        /// Its line, from 1.
        line: usize,
    },
    /// In an environment variable, or in `.env`.
    Variable(Arc<str>),
    /// Nowhere: a default.
    Default,
}

/// One error or warning: the place, what is wrong, the cure. Never a secret's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The path of keys, such as `providers.acme.client_auth`, or the name of a variable.
    /// Empty when the whole configuration is meant.
    pub place: String,
    /// `what is wrong; the cure`.
    pub text: String,
    /// Where the value was written.
    pub origin: Origin,
}

impl Problem {
    pub(super) fn new(origin: &Origin, place: impl Into<String>, text: impl Into<String>) -> Self {
        Self {
            place: place.into(),
            text: text.into(),
            origin: origin.clone(),
        }
    }

    /// Whether the problem is about `place` or something inside it.
    pub(super) fn is_within(&self, place: &str) -> bool {
        self.place
            .strip_prefix(place)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    }
}

impl fmt::Display for Problem {
    /// One line: `file:line: place: what is wrong; the cure`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.origin {
            Origin::File { name, line, .. } => write!(f, "{name}:{line}: ")?,
            Origin::Variable(name) if **name != *self.place => write!(f, "{name}: ")?,
            Origin::Variable(_) | Origin::Default => {}
        }
        if !self.place.is_empty() {
            write!(f, "{}: ", self.place)?;
        }
        f.write_str(&self.text)
    }
}

/// All that is wrong, at once, in the order of the file. `Display` is one line each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Errors(Vec<Problem>);

impl Errors {
    pub(super) fn new(mut problems: Vec<Problem>) -> Self {
        sort(&mut problems);
        Self(problems)
    }

    /// The errors; never empty.
    pub fn problems(&self) -> &[Problem] {
        &self.0
    }
}

impl From<Problem> for Errors {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.0.iter().enumerate() {
            let separator = if i == 0 { "" } else { "\n" };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Errors {}

/// Sorts by origin, then by place; one problem said twice is said once.
pub(super) fn sort(problems: &mut Vec<Problem>) {
    problems.sort_by(|a, b| (&a.origin, &a.place, &a.text).cmp(&(&b.origin, &b.place, &b.text)));
    problems.dedup();
}

/// `; did you mean "…"?` for the known word nearest to `word`, or the list of known
/// words when none is near.
pub(super) fn cure<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    let mut known: Vec<&str> = known.into_iter().collect();
    known.sort_unstable();
    known.dedup();
    match nearest(word, known.iter().copied()) {
        Some(near) => format!("did you mean \"{near}\"?"),
        None if known.is_empty() => "none is defined".to_owned(),
        None => format!("known: {}", known.join(", ")),
    }
}

/// The known word that differs from `word` by at most a third of its letters.
pub(super) fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = word.to_lowercase();
    known
        .into_iter()
        .map(|candidate| {
            let distance = strsim::damerau_levenshtein(&lower, &candidate.to_lowercase());
            (distance, candidate)
        })
        .filter(|(distance, _)| *distance <= (word.chars().count() / 3).max(1))
        .min()
        .map(|(_, candidate)| candidate)
}
