//! Text to tokens.
//!
//! The tokenizer accepts what a Go scanner accepts, because that is what existing queries were written for: Go strings, numbers and
//! comments. Two things need context and are therefore one token each, so that the parser never sees their inside:
//!
//! ```text
//! resource."k8s pod".name   Attribute   no whitespace; plain parts run up to one of  { } ( ) = ~ ! < > & | ^ ,
//! 1h30m                     Duration    a number directly followed by letters that form a duration
//! ```
//!
//! A token that is not in the language becomes [`Token::Invalid`]; it is reported only when the parser gets there, so that the first
//! mistake in the text is the one that is reported.

use std::fmt;

use super::{
    ast::{Field, Position, Scope},
    number,
};

/// A token.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token {
    /// A word: keyword or identifier.
    Word(String),
    /// `span:`, `trace:`, `event:`, `link:`, `instrumentation:`.
    IntrinsicScope(&'static str),
    /// A scoped or unscoped attribute.
    Attribute(Field),
    /// A string without its quotes.
    String(String),
    /// An integer.
    Int(i64),
    /// A float.
    Float(f64),
    /// Nanoseconds.
    Duration(i64),
    /// Punctuation or an operator.
    Symbol(&'static str),
    /// Not in the language; the reason.
    Invalid(String),
    /// End of the query.
    End,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Word(word) => write!(f, "\"{word}\""),
            Self::IntrinsicScope(scope) => write!(f, "\"{scope}:\""),
            Self::Attribute(field) => write!(f, "attribute {field}"),
            Self::String(text) => write!(f, "string {text:?}"),
            Self::Int(number) => write!(f, "integer {number}"),
            Self::Float(number) => write!(f, "float {number}"),
            Self::Duration(nanos) => write!(f, "duration {}", number::format_duration(*nanos)),
            Self::Symbol(symbol) => write!(f, "{symbol}"),
            Self::Invalid(reason) => f.write_str(reason),
            Self::End => f.write_str("end of query"),
        }
    }
}

/// Longest first, so that the first hit is the longest match.
const SYMBOLS: [&str; 37] = [
    "!>>", "!<<", "&>>", "&<<", "&&", "||", "!=", "!~", "!>", "!<", "&>", "&<", "&~", "=~", ">=", "<=", ">>", "<<", "{", "}", "(", ")",
    ",", "=", "~", ">", "<", "+", "-", "*", "/", "%", "^", "!", "|", ":", "&",
];

/// Scopes that are followed by `:` and the name of an intrinsic.
const INTRINSIC_SCOPES: [&str; 5] = ["span", "trace", "event", "link", "instrumentation"];

/// Splits a query into tokens. The last one is [`Token::End`] or [`Token::Invalid`].
pub(super) fn tokenize(query: &str) -> Vec<(Token, Position)> {
    let query = query.strip_prefix('\u{feff}').unwrap_or(query);
    let mut lexer = Lexer { rest: query, at: Position { line: 1, column: 1 } };
    let mut tokens = Vec::new();
    loop {
        let skipped = lexer.skip_blanks();
        let at = lexer.at;
        let token = match skipped {
            Ok(()) => lexer.token().unwrap_or_else(Token::Invalid),
            Err(reason) => Token::Invalid(reason),
        };
        let last = matches!(token, Token::End | Token::Invalid(_));
        tokens.push((token, at));
        if last {
            return tokens;
        }
    }
}

struct Lexer<'a> {
    rest: &'a str,
    at: Position,
}

impl<'a> Lexer<'a> {
    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.rest = &self.rest[c.len_utf8()..];
        if c == '\n' {
            self.at = Position { line: self.at.line + 1, column: 1 };
        } else {
            self.at.column += 1;
        }
        Some(c)
    }

    /// Takes characters while `wanted` holds.
    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let start = self.rest;
        while self.peek().is_some_and(&wanted) {
            self.next();
        }
        &start[..start.len() - self.rest.len()]
    }

    /// Takes `length` bytes, which end at a character boundary.
    fn advance(&mut self, length: usize) {
        let end = self.rest.len() - length;
        while self.rest.len() > end {
            self.next();
        }
    }

    /// Whitespace and comments.
    fn skip_blanks(&mut self) -> Result<(), String> {
        loop {
            self.take_while(|c| matches!(c, ' ' | '\t' | '\r' | '\n'));
            if self.rest.starts_with("//") {
                self.take_while(|c| c != '\n');
            } else if self.rest.starts_with("/*") {
                let Some(length) = self.rest.find("*/") else {
                    return Err("comment not terminated".to_owned());
                };
                self.advance(length + 2);
            } else {
                return Ok(());
            }
        }
    }

    fn token(&mut self) -> Result<Token, String> {
        let Some(c) = self.peek() else {
            return Ok(Token::End);
        };
        match c {
            '"' => self.interpreted_string(),
            '`' => self.raw_string(),
            '\'' => Err("strings are quoted with \" or `, not with '".to_owned()),
            '0'..='9' => self.number(),
            '.' => match self.rest[1..].chars().next() {
                Some('0'..='9') => self.number(),
                _ => {
                    self.next();
                    self.attribute(false, Scope::Any)
                }
            },
            c if c == '_' || c.is_alphabetic() => self.word(),
            c => match SYMBOLS.iter().find(|symbol| self.rest.starts_with(**symbol)) {
                Some(symbol) => {
                    self.advance(symbol.len());
                    Ok(Token::Symbol(symbol))
                }
                None => Err(format!("invalid character {c:?}")),
            },
        }
    }

    fn word(&mut self) -> Result<Token, String> {
        let word = self.take_while(|c| c == '_' || c.is_alphanumeric());
        match self.peek() {
            Some('.') => {
                let (parent, scope) = match word {
                    "span" => (false, Scope::Span),
                    "resource" => (false, Scope::Resource),
                    "event" => (false, Scope::Event),
                    "link" => (false, Scope::Link),
                    "instrumentation" => (false, Scope::Instrumentation),
                    "parent" => (true, Scope::Any),
                    _ => return Ok(Token::Word(word.to_owned())),
                };
                self.next();
                for (prefix, second) in [("span.", Scope::Span), ("resource.", Scope::Resource)] {
                    if parent && self.rest.starts_with(prefix) {
                        self.advance(prefix.len());
                        return self.attribute(parent, second);
                    }
                }
                self.attribute(parent, scope)
            }
            Some(':') => match INTRINSIC_SCOPES.iter().find(|scope| **scope == word) {
                Some(scope) => {
                    self.next();
                    Ok(Token::IntrinsicScope(scope))
                }
                None => Ok(Token::Word(word.to_owned())),
            },
            _ => Ok(Token::Word(word.to_owned())),
        }
    }

    /// The name of an attribute, after its prefix.
    fn attribute(&mut self, parent: bool, scope: Scope) -> Result<Token, String> {
        let mut name = String::new();
        let mut quoted = false;
        loop {
            match self.peek() {
                Some('"') => {
                    quoted = true;
                    self.next();
                    self.quoted_name_part(&mut name)?;
                }
                Some('\0') => return Err("invalid character NUL".to_owned()),
                Some(c) if !ends_name(c) => {
                    name.push(c);
                    self.next();
                }
                _ => break,
            }
        }
        if name.is_empty() && !quoted {
            return Err("an attribute name is missing".to_owned());
        }
        Ok(Token::Attribute(Field::Attribute { parent, scope, name }))
    }

    fn quoted_name_part(&mut self, name: &mut String) -> Result<(), String> {
        loop {
            match self.next() {
                None => return Err("quoted attribute name not terminated".to_owned()),
                Some('"') => return Ok(()),
                Some('\\') => match self.next() {
                    Some(c @ ('"' | '\\')) => name.push(c),
                    _ => return Err("only \\\" and \\\\ are escapes in a quoted attribute name".to_owned()),
                },
                Some(c) => name.push(c),
            }
        }
    }

    fn raw_string(&mut self) -> Result<Token, String> {
        self.next();
        // Go drops carriage returns from raw strings.
        let text = self.take_while(|c| c != '`').replace('\r', "");
        match self.next() {
            Some(_) => Ok(Token::String(text)),
            None => Err("string not terminated".to_owned()),
        }
    }

    fn interpreted_string(&mut self) -> Result<Token, String> {
        self.next();
        // Octal and hex escapes give bytes, which together must be UTF-8 again.
        let mut bytes = Vec::new();
        loop {
            match self.next() {
                None | Some('\n') => return Err("string not terminated".to_owned()),
                Some('"') => break,
                Some('\\') => self.escape(&mut bytes)?,
                Some(c) => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        String::from_utf8(bytes).map(Token::String).map_err(|_| "string is not UTF-8".to_owned())
    }

    fn escape(&mut self, bytes: &mut Vec<u8>) -> Result<(), String> {
        let Some(c) = self.next() else {
            return Err("string not terminated".to_owned());
        };
        let byte = match c {
            'a' => 0x07,
            'b' => 0x08,
            'f' => 0x0c,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 0x0b,
            '\\' => b'\\',
            '"' => b'"',
            '0'..='7' => {
                let high = c.to_digit(8).unwrap_or_default();
                let value = high * 64 + self.digits(2, 8)?;
                u8::try_from(value).map_err(|_| "octal escape above \\377".to_owned())?
            }
            'x' => u8::try_from(self.digits(2, 16)?).map_err(|_| "invalid hex escape".to_owned())?,
            'u' | 'U' => {
                let code = self.digits(if c == 'u' { 4 } else { 8 }, 16)?;
                let decoded = char::from_u32(code).ok_or_else(|| format!("escape \\{c} of something that is no character"))?;
                bytes.extend_from_slice(decoded.encode_utf8(&mut [0; 4]).as_bytes());
                return Ok(());
            }
            _ => return Err(format!("unknown escape \\{c}; in regular expressions write \\\\{c} or use backquotes")),
        };
        bytes.push(byte);
        Ok(())
    }

    fn digits(&mut self, count: u32, radix: u32) -> Result<u32, String> {
        let mut value: u32 = 0;
        for _ in 0..count {
            let digit = self.next().and_then(|c| c.to_digit(radix)).ok_or_else(|| "invalid escape".to_owned())?;
            value = value.wrapping_mul(radix).wrapping_add(digit);
        }
        Ok(value)
    }

    fn number(&mut self) -> Result<Token, String> {
        let scanned = number::scan(self.rest)?;
        let text = &self.rest[..scanned.length];
        // What follows directly may make it a duration.
        let tail = &self.rest[scanned.length..];
        let tail_length = tail.find(|c: char| !(c.is_numeric() || "nuµmshdwy.".contains(c))).unwrap_or(tail.len());
        if tail_length > 0 {
            let whole = scanned.length + tail_length;
            if let Some(nanos) = number::parse_duration(&self.rest[..whole]) {
                self.advance(whole);
                return Ok(Token::Duration(nanos));
            }
        }
        self.advance(scanned.length);
        if scanned.is_float { number::parse_float(text).map(Token::Float) } else { number::parse_int(text).map(Token::Int) }
    }
}

/// Whether a character cannot be part of an unquoted attribute name.
pub(super) fn ends_name(c: char) -> bool {
    matches!(c, '{' | '}' | '(' | ')' | '=' | '~' | '!' | '<' | '>' | '&' | '|' | '^' | ',') || c.is_whitespace()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(query: &str) -> Vec<Token> {
        tokenize(query).into_iter().map(|(token, _)| token).collect()
    }

    fn attribute(scope: Scope, name: &str) -> Token {
        Token::Attribute(Field::Attribute { parent: false, scope, name: name.to_owned() })
    }

    #[test]
    fn names_take_everything_that_is_no_operator() {
        assert_eq!(tokens(".a-1 "), [attribute(Scope::Any, "a-1"), Token::End]);
        assert_eq!(tokens("span.1/*x*/"), [attribute(Scope::Span, "1/*x*/"), Token::End]);
        assert_eq!(tokens(r#"."a b".c"#), [attribute(Scope::Any, "a b.c"), Token::End]);
        assert_eq!(tokens(".\"\""), [attribute(Scope::Any, ""), Token::End]);
        assert_eq!(tokens(".a^.b"), [attribute(Scope::Any, "a"), Token::Symbol("^"), attribute(Scope::Any, "b"), Token::End]);
        assert!(matches!(tokens(". a")[0], Token::Invalid(_)));
    }

    #[test]
    fn numbers_and_durations() {
        assert_eq!(
            tokens("017 .5 1. 1e3 0x1p4"),
            [Token::Int(17), Token::Float(0.5), Token::Float(1.0), Token::Float(1000.0), Token::Float(16.0), Token::End]
        );
        assert_eq!(
            tokens("1s1s .5s 1d12h"),
            [Token::Duration(2_000_000_000), Token::Duration(500_000_000), Token::Duration(36 * 3_600_000_000_000), Token::End]
        );
        for bad in ["08", "0x1F", "1_000", "0b1", "9223372036854775808", "1e400"] {
            assert!(matches!(tokens(bad)[0], Token::Invalid(_)), "{bad}");
        }
        assert_eq!(tokens("1M"), [Token::Int(1), Token::Word("M".to_owned()), Token::End]);
    }

    #[test]
    fn strings_are_gos() {
        assert_eq!(tokens(r#""\101\x42\u00e9\n""#), [Token::String("ABé\n".to_owned()), Token::End]);
        assert_eq!(tokens("`a\\d`"), [Token::String("a\\d".to_owned()), Token::End]);
        for bad in [r#""\d""#, "\"a\nb\"", "\"a", "`a", "'a'"] {
            assert!(matches!(tokens(bad)[0], Token::Invalid(_)), "{bad}");
        }
    }

    #[test]
    fn positions_count_lines_and_characters() {
        let all = tokenize("{ /* é\n */ .a }");
        assert_eq!(all[1].1, Position { line: 2, column: 5 });
        assert_eq!(all[2].1, Position { line: 2, column: 8 });
    }
}
