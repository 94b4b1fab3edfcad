//! The runbook of the alerts as a page, with an anchor for each alert: where their
//! `runbook_url` leads unless it was told otherwise.

use std::sync::LazyLock;

use pulldown_cmark::{CowStr, Event, Options, Parser, Tag, TagEnd, html};

use crate::shipped::RUNBOOK;

/// The page. Made once: it never changes.
pub fn page() -> &'static str {
    static PAGE: LazyLock<String> = LazyLock::new(|| {
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width\">\n\
             <title>Perennial: runbook</title>\n\
             <style>body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; padding: 0 1rem; \
             max-width: 46rem; color-scheme: light dark }} :target {{ background: Mark; color: MarkText }} \
             pre, code {{ font-size: 14px }} pre {{ overflow-x: auto }} \
             table {{ border-collapse: collapse }} td, th {{ text-align: left; vertical-align: top; \
             padding: 0 1rem 0.3rem 0 }}</style>\n{}</html>\n",
            body(RUNBOOK)
        )
    });
    &PAGE
}

fn body(markdown: &str) -> String {
    let mut events = Vec::new();
    let mut heading: Option<usize> = None;
    let mut words = String::new();
    for event in Parser::new_ext(markdown, Options::ENABLE_TABLES) {
        match &event {
            Event::Start(Tag::Heading { .. }) => {
                heading = Some(events.len());
                words.clear();
            }
            Event::Text(text) | Event::Code(text) if heading.is_some() => words.push_str(text),
            Event::End(TagEnd::Heading(_)) => {
                if let Some(start) = heading.take()
                    && let Event::Start(Tag::Heading { id, .. }) = &mut events[start]
                {
                    *id = Some(CowStr::from(anchor(&words)));
                    // Grafana cannot lower the case of an alert's name.
                    if words.chars().all(char::is_alphanumeric) {
                        let own = format!("<a id=\"{words}\"></a>");
                        events.insert(start, Event::Html(own.into()));
                    }
                }
            }
            _ => {}
        }
        events.push(event);
    }
    let mut out = String::new();
    html::push_html(&mut out, events.into_iter());
    out
}

/// As code hosts make it from a heading: letters in lower case, a hyphen for a space.
fn anchor(heading: &str) -> String {
    heading
        .chars()
        .filter_map(|letter| match letter {
            ' ' => Some('-'),
            letter if letter.is_alphanumeric() || "-_".contains(letter) => {
                Some(letter.to_ascii_lowercase())
            }
            _ => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headings_have_the_anchors_that_code_hosts_give_them() {
        let html = body("# All `of` it\n\n## TokenNeedsLogin\n\n| a | b |\n|---|---|\n| 1 | 2 |\n");
        assert!(html.contains("<h1 id=\"all-of-it\">"), "{html}");
        assert!(
            html.contains(
                "<a id=\"TokenNeedsLogin\"></a>\n<h2 id=\"tokenneedslogin\">TokenNeedsLogin</h2>"
            ),
            "{html}"
        );
        assert!(html.contains("<td>2</td>"), "{html}");
    }
}
