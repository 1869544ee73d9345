//! Regular expressions: RE2 as Go understands it, matched against the whole text.
//!
//! The `regex` crate is a close relative of RE2, with a few differences that queries would notice. They are removed by rewriting the
//! text before it is compiled:
//!
//! * `\d`, `\w`, `\s`, `\b` are about ASCII only,
//! * `\Q…\E` quotes,
//! * inside brackets `[`, `&&`, `--` and `~~` mean themselves,
//! * `\<` and `\>` mean themselves.
//!
//! The text comes from a client. Compiled programs are therefore bounded in size, each and all of a query together ([`PatternBudget`]):
//! sizes are tried from small to large, and what was tried is taken from the budget whether or not it was enough.

use regex::{Regex, RegexBuilder};

/// Sizes of compiled patterns that are tried, in bytes.
const SIZE_LIMITS: [usize; 3] = [1 << 14, 1 << 17, 1 << 20];
/// How much larger the cache may grow that a pattern fills while it matches.
const CACHE_FACTOR: usize = 4;
/// Bytes for all compiled patterns of a query.
const QUERY_LIMIT: usize = 16 << 20;
/// Classes that are written `[:name:]`.
const CLASS_NAMES: [&str; 14] =
    ["alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space", "upper", "word", "xdigit"];
/// Longest name of a class such as `[:alpha:]`, with its colons.
const MAX_CLASS_NAME: usize = 12;
/// How deep groups may nest.
const NEST_LIMIT: u32 = 100;

/// A compiled regular expression. Anchored at both ends; `.` matches newlines too.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    compiled: Result<Regex, String>,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

/// What is left for the patterns of a query.
#[derive(Debug)]
pub(super) struct PatternBudget {
    bytes_left: usize,
}

impl Default for PatternBudget {
    fn default() -> Self {
        Self { bytes_left: QUERY_LIMIT }
    }
}

impl Pattern {
    /// Compiles a pattern. Whether that worked is told by [`Pattern::error`].
    pub(super) fn new(text: &str, budget: &mut PatternBudget) -> Self {
        Self { text: text.to_owned(), compiled: compile(text, budget) }
    }

    /// The expression as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Why it does not compile.
    pub(super) fn error(&self) -> Option<&str> {
        self.compiled.as_ref().err().map(String::as_str)
    }

    /// Whether the whole of `text` matches. A pattern that does not compile matches nothing.
    pub(crate) fn is_match(&self, text: &str) -> bool {
        self.compiled.as_ref().is_ok_and(|regex| regex.is_match(text))
    }
}

fn compile(text: &str, budget: &mut PatternBudget) -> Result<Regex, String> {
    let anchored = format!("^(?:{})$", rewrite(text)?);
    let mut last = String::new();
    for limit in SIZE_LIMITS {
        budget.bytes_left = match budget.bytes_left.checked_sub(limit) {
            Some(left) => left,
            None => return Err(format!("the regular expressions of the query together are larger than {QUERY_LIMIT} bytes")),
        };
        let built = RegexBuilder::new(&anchored)
            .dot_matches_new_line(true)
            .nest_limit(NEST_LIMIT)
            .size_limit(limit)
            .dfa_size_limit(limit * CACHE_FACTOR)
            .build();
        match built {
            Ok(regex) => return Ok(regex),
            Err(regex::Error::CompiledTooBig(_)) => last = format!("compiled pattern is larger than {limit} bytes"),
            Err(error) => return Err(describe(&error)),
        }
    }
    Err(last)
}

/// The crate draws the pattern with a caret under the mistake; only the last line is of use in a message.
fn describe(error: &regex::Error) -> String {
    let text = error.to_string();
    text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

/// Rewrites RE2 syntax to that of the crate.
fn rewrite(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len() + 8);
    let mut rest = text.chars().peekable();
    let mut in_class = false;
    let mut at_class_start = false;
    let mut groups = 0_u32;
    while let Some(c) = rest.next() {
        let first_in_class = std::mem::take(&mut at_class_start);
        match c {
            '\\' => match rest.next() {
                None => return Err("trailing backslash at end of expression".to_owned()),
                Some('Q') if !in_class => quote(&mut rest, &mut out),
                Some(escape) => rewrite_escape(escape, in_class, &mut out),
            },
            '[' if !in_class => {
                out.push('[');
                in_class = true;
                at_class_start = true;
                if rest.next_if_eq(&'^').is_some() {
                    out.push('^');
                }
            }
            '[' if rest.peek() == Some(&':') => copy_posix_class(&mut rest, &mut out)?,
            ']' if in_class && first_in_class => out.push_str("\\]"),
            ']' if in_class => {
                out.push(']');
                in_class = false;
            }
            '[' | '&' | '~' if in_class => {
                out.push('\\');
                out.push(c);
            }
            '-' if in_class && rest.peek() == Some(&'-') => out.push_str("\\-"),
            '(' if !in_class && rest.peek() == Some(&'?') => {
                let flags: String = rest.clone().skip(1).take_while(|c| c.is_ascii_alphabetic() || *c == '-').collect();
                let named = flags == "P" || rest.clone().nth(1) == Some('<');
                if !named && flags.chars().any(|flag| !"imsU-".contains(flag)) {
                    return Err(format!("invalid or unsupported Perl syntax: `(?{flags}`"));
                }
                groups += 1;
                out.push('(');
            }
            '(' if !in_class => {
                groups += 1;
                out.push('(');
            }
            // The text must stand for itself: `a)(b` is not a pattern although `(?:a)(b)` is.
            ')' if !in_class => {
                groups = groups.checked_sub(1).ok_or_else(|| "unexpected )".to_owned())?;
                out.push(')');
            }
            _ => out.push(c),
        }
    }
    Ok(out)
}

fn quote(rest: &mut std::iter::Peekable<std::str::Chars<'_>>, out: &mut String) {
    let mut literal = String::new();
    while let Some(c) = rest.next() {
        if c == '\\' && rest.next_if_eq(&'E').is_some() {
            break;
        }
        literal.push(c);
    }
    out.push_str(&regex::escape(&literal));
}

fn rewrite_escape(escape: char, in_class: bool, out: &mut String) {
    match escape {
        'd' => out.push_str("[0-9]"),
        'D' => out.push_str("[^0-9]"),
        'w' => out.push_str("[0-9A-Za-z_]"),
        'W' => out.push_str("[^0-9A-Za-z_]"),
        's' => out.push_str("[\\t\\n\\f\\r ]"),
        'S' => out.push_str("[^\\t\\n\\f\\r ]"),
        'b' if !in_class => out.push_str("(?-u:\\b)"),
        '<' | '>' => out.push(escape),
        _ => {
            out.push('\\');
            out.push(escape);
        }
    }
}

/// Copies `:alpha:]` after its bracket.
fn copy_posix_class(rest: &mut std::iter::Peekable<std::str::Chars<'_>>, out: &mut String) -> Result<(), String> {
    let ahead: String = rest.clone().take(MAX_CLASS_NAME).take_while(|c| *c != ']').collect();
    let is_name = ahead.len() > 1 && ahead.ends_with(':') && rest.clone().nth(ahead.chars().count()) == Some(']');
    if !is_name {
        out.push_str("\\[");
        return Ok(());
    }
    let name = ahead.trim_matches(':');
    if !CLASS_NAMES.contains(&name.trim_start_matches('^')) {
        return Err(format!("invalid character class `[:{name}:]`"));
    }
    out.push_str(&format!("[:{name}:]"));
    // Everything in a class name is ASCII.
    for _ in 0..=ahead.len() {
        rest.next();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(pattern: &str) -> Pattern {
        Pattern::new(pattern, &mut PatternBudget::default())
    }

    fn matches(pattern: &str, text: &str) -> bool {
        let pattern = new(pattern);
        assert_eq!(pattern.error(), None, "{pattern:?}");
        pattern.is_match(text)
    }

    #[test]
    fn both_ends_are_anchored() {
        assert!(matches("a|b", "b"));
        assert!(!matches("a|b", "ab"));
        assert!(!matches("foo", "foox"));
        assert!(matches("", ""));
        assert!(!matches("", "x"));
        assert!(matches("a.b", "a\nb"));
        assert!(!matches("a$", "a\n"));
    }

    #[test]
    fn classes_are_ascii() {
        assert!(matches(r"\d+", "42"));
        assert!(!matches(r"\d+", "٤٢"));
        assert!(!matches(r"\w", "é"));
        assert!(matches(r"\W", "é"));
        assert!(matches(r"[\d.]+", "1.2"));
        assert!(matches(".", "é"));
        assert!(matches(r".*\bb", "a b"));
    }

    #[test]
    fn brackets_are_literal_inside_brackets() {
        assert!(matches("[[]", "["));
        assert!(matches("[]a]+", "]a"));
        assert!(matches("[a&&b]+", "a&b"));
        assert!(matches("[[:alpha:]x-]+", "ab-x"));
        assert!(matches(r"\Qa.b(\E+", "a.b(("));
    }

    #[test]
    fn what_re2_refuses_is_refused() {
        for bad in ["[", "a)(b", "(?=x)", "(?<!x)", "*", "a\\", "(?x)a", "(?P<n", "x{1,2", "(a"] {
            // A brace that opens no repetition is a literal in RE2.
            let refused = new(bad).error().is_some();
            assert!(refused || bad == "x{1,2", "{bad}");
        }
    }

    #[test]
    fn hostile_patterns_are_refused_or_cheap() {
        assert!(new("((a{1000}){1000}){1000}").error().is_some());
        assert!(new(&"(".repeat(100_000)).error().is_some());
        assert!(!matches("(a*)*b", &"a".repeat(10_000)));
    }

    #[test]
    fn patterns_share_a_budget() {
        let mut budget = PatternBudget::default();
        let compiled = (0..10_000).filter(|_| Pattern::new("a.*", &mut budget).error().is_none()).count();
        assert_eq!(compiled, QUERY_LIMIT / SIZE_LIMITS[0]);
        let mut budget = PatternBudget::default();
        let large = (0..100).filter(|_| Pattern::new("\\pL{8}", &mut budget).error().is_none()).count();
        assert!((1..100).contains(&large), "{large}");
    }

    #[test]
    fn classes_with_names_are_copied() {
        assert!(matches("[^[:digit:][:upper:]]", "a"));
        assert!(!matches("[^[:digit:]]", "1"));
        assert!(matches("[[:]+", "[:"));
        assert!(new("[[:nothing:]]").error().is_some());
    }
}
