//! Span names as patterns (`span_name_sanitization`): what looks like an id becomes `<_>`.
//!
//! ```text
//!  GET /users/4711/orders/9f1c2d3e-0b1a-4c5d-8e9f-001122334455 ──► GET /users/<_>/orders/<_>
//! ```
//!
//! Names that carry ids make a series of every request. Tempo clusters the names that it has met; what a name becomes then depends on
//! what came before it and on the process. Here it depends on the name alone, so that all workers agree, before and after a recovery.

use std::borrow::Cow;

/// What stands for an id.
const ANY: &str = "<_>";

/// The pattern of a name; borrowed where nothing in it looks like an id.
pub fn pattern(name: &str) -> Cow<'_, str> {
    let mut pattern = String::new();
    // What of the name is in the pattern already.
    let mut done = 0;
    let words = name.split(|c: char| c.is_whitespace() || "/?&=,;:()[]{}<>\"'|#@".contains(c));
    for word in words.filter(|word| word.bytes().any(|byte| byte.is_ascii_digit())) {
        let at = word.as_ptr().addr() - name.as_ptr().addr();
        for (from, to) in ids(word) {
            pattern.push_str(&name[done..at + from]);
            pattern.push_str(ANY);
            done = at + to;
        }
    }
    if done == 0 {
        return Cow::Borrowed(name);
    }
    pattern.push_str(&name[done..]);
    Cow::Owned(pattern)
}

/// Where in a word ids are: ascending, and never side by side.
fn ids(word: &str) -> Vec<(usize, usize)> {
    if is_uuid(word) {
        return vec![(0, word.len())];
    }
    let mut found: Vec<(usize, usize)> = Vec::new();
    let mut at = 0;
    for part in word.split(['-', '_', '.']) {
        let end = at + part.len();
        if is_id(part) {
            match found.last_mut() {
                Some(last) if last.1 + 1 == at => last.1 = end,
                _ => found.push((at, end)),
            }
        }
        at = end + 1;
    }
    found
}

/// A number, or hexadecimal digits, or letters and digits that are too many for a name.
fn is_id(part: &str) -> bool {
    let digits = part.bytes().filter(u8::is_ascii_digit).count();
    let all = |is: fn(&u8) -> bool| part.bytes().all(|byte| is(&byte));
    digits > 0
        && (digits == part.len()
            || part.len() >= 8 && all(u8::is_ascii_hexdigit)
            || part.len() >= 16 && digits >= 3 && all(u8::is_ascii_alphanumeric))
}

fn is_uuid(word: &str) -> bool {
    let lengths = [8, 4, 4, 4, 12];
    let is_part = |(part, length): (&str, usize)| part.len() == length && part.bytes().all(|byte| byte.is_ascii_hexdigit());
    word.len() == 36 && word.split('-').count() == lengths.len() && word.split('-').zip(lengths).all(is_part)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_become_patterns_and_names_do_not() {
        for (name, expected) in [
            ("GET /users/4711/orders/9f1c2d3e-0b1a-4c5d-8e9f-001122334455", "GET /users/<_>/orders/<_>"),
            ("GET /users/{id}", "GET /users/{id}"),
            ("GET /v1/users?page=2&size=50", "GET /v1/users?page=<_>&size=<_>"),
            ("object-deadbeef01", "object-<_>"),
            ("job 2026-11-23_01", "job <_>"),
            ("SELECT orders_1234", "SELECT orders_<_>"),
            ("session 01HF3X9Q4Z7K2M5N8P1R6S0T4V", "session <_>"),
            ("s3.GetObject", "s3.GetObject"),
            ("oauth2 login with utf8mb4", "oauth2 login with utf8mb4"),
            ("deadbeef", "deadbeef"),
            ("größe 12 übrig", "größe <_> übrig"),
            ("", ""),
        ] {
            assert_eq!(pattern(name), expected);
        }
    }

    proptest! {
        #[test]
        fn a_pattern_is_its_own_pattern(name in "[a-f0-9/ ._ä-]{0,60}") {
            let once = pattern(&name).into_owned();
            prop_assert_eq!(pattern(&once), &*once);
        }

        #[test]
        fn different_numbers_make_one_name(a: u64, b: u64) {
            let [a, b] = [a, b].map(|id| pattern(&format!("GET /things/{id}/parts")).into_owned());
            prop_assert_eq!(a, b);
        }
    }
}
