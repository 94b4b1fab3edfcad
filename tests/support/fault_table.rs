//! `docs/faults.md` says what each fault costs. Its rows are written by the tests that cause the
//! faults, and a row that no longer says what its test saw fails that test.
//!
//! `FAULTS=write` (see `make faults`) writes the rows instead.

use std::{
    env,
    fs::{self, File},
    path::Path,
};

/// A fault, as one row of its section.
pub struct Fault<'a> {
    /// The heading that it stands under, without its `##`.
    pub section: &'a str,
    /// What is done to Perennial, in a few words; one row for each.
    pub fault: &'a str,
    /// How many times the test did it.
    pub tries: usize,
    /// How many credentials or grants were lost by all the tries together.
    pub lost: usize,
    /// What the user sees: state, metric, log line, next attempt.
    pub seen: &'a str,
}

impl Fault<'_> {
    /// Compares the row with the table, or puts it there.
    pub fn record(&self) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/faults.md");
        let (fault, seen) = (self.fault, self.seen);
        assert!(!format!("{fault}{seen}").contains(['|', '\n']), "{fault}");
        let row = format!("| {fault} | {} | {} | {seen} |", self.tries, self.lost);
        if env::var("FAULTS").as_deref() == Ok("write") {
            // Tests are processes of their own, and several write at once.
            let file = File::open(&path).expect("docs/faults.md");
            file.lock().expect("a lock");
            let table = fs::read_to_string(&path).expect("docs/faults.md");
            fs::write(&path, put(&table, self.section, fault, &row)).expect("it can be written");
        } else {
            let table = fs::read_to_string(&path).expect("docs/faults.md");
            assert!(
                table.lines().any(|line| line == row),
                "docs/faults.md does not say what was seen (`make faults` writes it):\n{row}"
            );
        }
    }
}

/// The same table with the row of a fault replaced, or added at the end of its section.
fn put(table: &str, section: &str, fault: &str, row: &str) -> String {
    let mut lines: Vec<&str> = table.lines().collect();
    let heading = format!("## {section}");
    let heading = lines.iter().position(|line| *line == heading);
    let heading = heading.unwrap_or_else(|| panic!("docs/faults.md has no section {section}"));
    let is_row = |line: &&str| line.starts_with('|');
    let first = lines[heading..].iter().position(is_row).expect("a table") + heading;
    let rows = lines[first..]
        .iter()
        .take_while(|line| is_row(line))
        .count();
    let begins = format!("| {fault} |");
    let old = lines[first..first + rows]
        .iter()
        .position(|line| line.starts_with(&begins));
    match old {
        Some(old) => lines[first + old] = row,
        None => lines.insert(first + rows, row),
    }
    lines.join("\n") + "\n"
}

#[test]
fn a_row_is_replaced_or_added_in_its_section() {
    let table = "## A\n\n| f | n |\n|---|---|\n| x | 1 |\n\n## B\n\n| f | n |\n|---|---|\n";
    let once = put(table, "A", "x", "| x | 2 |");
    assert_eq!(once, table.replace("| x | 1 |", "| x | 2 |"));
    assert_eq!(put(&once, "B", "y", "| y | 3 |"), once + "| y | 3 |\n");
}
