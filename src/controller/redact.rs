//! Sentences for people: short, on one line, without secrets. Pure.

use crate::worker::contract::cut;

/// The longest message of a condition.
pub(super) const MESSAGE_LIMIT: usize = 1024;

/// `text` on one line, at most [`MESSAGE_LIMIT`] bytes, its URLs without user and query.
pub(super) fn sentence(text: &str) -> String {
    // In JSON a control character is six.
    let words = text.split(|c: char| c.is_whitespace() || c.is_control()).filter(|word| !word.is_empty());
    let text = words.map(without_secrets).collect::<Vec<_>>().join(" ");
    cut(&text, MESSAGE_LIMIT).to_owned()
}

/// A word without what a URL in it may carry: a password before the host, a signature in the query.
fn without_secrets(word: &str) -> String {
    let Some((before, rest)) = word.split_once("://") else { return word.to_owned() };
    let is_end = |c: char| matches!(c, '"' | '\'' | '<' | '>' | ')' | ']' | '}' | ',' | ';' | '|' | '`');
    let (url, after) = rest.split_at(rest.find(is_end).unwrap_or(rest.len()));
    let url = url.split(['?', '#']).next().unwrap_or_default();
    let (authority, path) = url.split_at(url.find('/').unwrap_or(url.len()));
    let host = authority.rsplit('@').next().unwrap_or_default();
    // Whatever follows may hold another URL.
    format!("{before}://{host}{path}{}", without_secrets(after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_loses_its_user_and_its_query() {
        for (text, expected) in [
            ("plain text", "plain text"),
            ("a  b\n\tc\u{1b}[31m\u{0}", "a b c [31m"),
            ("GET https://s3.example/b/k?X-Amz-Signature=abc failed", "GET https://s3.example/b/k failed"),
            ("\"https://me:pw@r.example:5000/v2/\"; retry", "\"https://r.example:5000/v2/\"; retry"),
            ("(http://a/b?c=1,http://d?e=2)", "(http://a/b,http://d)"),
            ("https://a?b#c", "https://a"),
        ] {
            assert_eq!(sentence(text), expected);
        }
    }

    #[test]
    fn a_message_is_cut_on_a_character() {
        let cut = sentence(&"ü".repeat(2000));
        assert!(cut.len() <= MESSAGE_LIMIT && cut.chars().all(|c| c == 'ü'));
    }
}
