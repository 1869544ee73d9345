//! Environment expansion of a configuration's raw text (`-config.expand-env`), comments included.
//!
//! `${VAR}` and the operators of the shell, `$${VAR}` for a literal `${VAR}`; `$VAR` without braces is left alone, so that the `$1` of a relabel rule
//! survives. An expression that isn't understood is an error with its line, never passed through.

/// Expands every `${…}` of `text`; `lookup` gives the value of a variable.
///
/// # Errors
/// The first expression that is not understood, with its line.
pub(crate) fn expand(text: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let tail = &rest[at..];
        if let Some(literal) = tail.strip_prefix("$${") {
            let end = closing(literal).ok_or_else(|| broken(text, tail))?;
            out.push_str("${");
            out.push_str(&literal[..=end]);
            rest = &literal[end + 1..];
        } else if let Some(expression) = tail.strip_prefix("${") {
            let end = closing(expression).ok_or_else(|| broken(text, tail))?;
            out.push_str(&evaluate(&expression[..end], lookup).ok_or_else(|| broken(text, tail))?);
            rest = &expression[end + 1..];
        } else {
            out.push('$');
            rest = &tail[1..];
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// The place of the brace that closes an expression which has just been opened; inner `${…}` are skipped.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut before) = (0, ' ');
    for (at, c) in text.char_indices() {
        match c {
            '{' if before == '$' => depth += 1,
            '}' if depth == 0 => return Some(at),
            '}' => depth -= 1,
            '\n' => return None,
            _ => {}
        }
        before = c;
    }
    None
}

fn broken(text: &str, tail: &str) -> String {
    let line = text[..text.len() - tail.len()].matches('\n').count() + 1;
    let shown: String = tail.chars().take_while(|c| *c != '\n').take(40).collect();
    format!("line {line}: bad substitution `{shown}`")
}

/// The value of what stands between the braces.
fn evaluate(expression: &str, lookup: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let get = |name: &str| lookup(name).unwrap_or_default();
    if let Some(name) = expression.strip_prefix('#') {
        return is_name(name).then(|| get(name).chars().count().to_string());
    }
    let end = expression.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(expression.len());
    let (name, operation) = expression.split_at(end);
    if !is_name(name) {
        return None;
    }
    let value = get(name);
    let argument = |text: &str| expand(text, lookup).ok();
    for operator in [":-", ":=", ":+", ":?", "=", "-", "+", "?"] {
        if let Some(default) = operation.strip_prefix(operator) {
            // A negative offset is written with a space, as in the shell: `${VAR: -2}`.
            return if value.is_empty() { argument(default) } else { Some(value) };
        }
    }
    let first = |change: fn(char) -> String| {
        let mut chars = value.chars();
        chars.next().map_or(String::new(), |c| change(c) + chars.as_str())
    };
    Some(match operation {
        "" => value,
        "^^" => value.to_uppercase(),
        ",," => value.to_lowercase(),
        "^" => first(|c| c.to_uppercase().collect()),
        "," => first(|c| c.to_lowercase().collect()),
        _ => match operation.strip_prefix(':') {
            Some(range) => substring(&value, range)?,
            None if operation.starts_with('/') => replace(&value, &operation[1..], &argument)?,
            None => trim(&value, operation, &argument)?,
        },
    })
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.starts_with(|c: char| c.is_ascii_digit()) && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// `pos` or `pos:len`, in characters.
fn substring(value: &str, range: &str) -> Option<String> {
    let (position, length) = range.split_once(':').map_or((range, None), |(position, length)| (position, Some(length)));
    let position: i64 = position.trim().parse().ok()?;
    let count = i64::try_from(value.chars().count()).ok()?;
    let start = if position < 0 { (count + position).max(0) } else { position.min(count) };
    let end = match length {
        None => count,
        Some(length) => {
            let length: i64 = length.trim().parse().ok()?;
            if length < 0 { (count + length).max(start) } else { start.saturating_add(length).min(count) }
        }
    };
    Some(value.chars().skip(usize::try_from(start).ok()?).take(usize::try_from(end - start).ok()?).collect())
}

/// `a/b` first, `/a/b` all, `#a/b` prefix, `%a/b` suffix.
fn replace(value: &str, operation: &str, argument: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let (mode, rest) = match operation.as_bytes().first()? {
        b'/' | b'#' | b'%' => operation.split_at(1),
        _ => ("", operation),
    };
    let (pattern, with) = rest.split_once('/').unwrap_or((rest, ""));
    let (pattern, with) = (argument(pattern)?, argument(with)?);
    if pattern.is_empty() {
        return Some(value.to_owned());
    }
    Some(match mode {
        "/" => value.replace(&pattern, &with),
        "#" => value.strip_prefix(&pattern).map_or_else(|| value.to_owned(), |rest| with + rest),
        "%" => value.strip_suffix(&pattern).map_or_else(|| value.to_owned(), |rest| rest.to_owned() + &with),
        _ => value.replacen(&pattern, &with, 1),
    })
}

/// `#p` and `##p` cut the shortest and longest matching prefix, `%p` and `%%p` the suffix. `*` and `?` are wildcards.
fn trim(value: &str, operation: &str, argument: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let (prefix, longest, pattern) = if let Some(pattern) = operation.strip_prefix("##") {
        (true, true, pattern)
    } else if let Some(pattern) = operation.strip_prefix('#') {
        (true, false, pattern)
    } else if let Some(pattern) = operation.strip_prefix("%%") {
        (false, true, pattern)
    } else {
        (false, false, operation.strip_prefix('%')?)
    };
    let pattern: Vec<char> = argument(pattern)?.chars().collect();
    let chars: Vec<char> = value.chars().collect();
    let mut lengths: Vec<usize> = (0..=chars.len()).collect();
    if longest {
        lengths.reverse();
    }
    let part = |length: usize| if prefix { &chars[..length] } else { &chars[chars.len() - length..] };
    let cut = lengths.into_iter().find(|length| matches(&pattern, part(*length))).unwrap_or(0);
    Some(if prefix { chars[cut..].iter().collect() } else { chars[..chars.len() - cut].iter().collect() })
}

/// Whether a pattern of literals, `*` and `?` matches a whole text.
fn matches(pattern: &[char], text: &[char]) -> bool {
    // The place after the last star and the text it has eaten so far: enough to go back to.
    let (mut p, mut t, mut star) = (0, 0, None);
    while t < text.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p + 1, t));
                p += 1;
            }
            Some(c) if *c == '?' || *c == text[t] => (p, t) = (p + 1, t + 1),
            _ => match &mut star {
                Some((after, eaten)) => {
                    *eaten += 1;
                    (p, t) = (*after, *eaten);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str) -> Result<String, String> {
        expand(text, &|name| match name {
            "VAR" => Some("value".to_owned()),
            "PATHS" => Some("/a/b/c.tar.gz".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        })
    }

    #[test]
    fn the_forms_of_the_table() {
        for (text, expected) in [
            ("a ${VAR} b", "a value b"),
            ("${NONE}", ""),
            ("${NONE:-d} ${NONE:=d} ${NONE=d} ${NONE-d} ${NONE:+d} ${NONE+d} ${NONE:?d}", "d d d d d d d"),
            ("${VAR:-d}${VAR:=d}${VAR:+d}", "valuevaluevalue"),
            ("${EMPTY-d}", "d"),
            ("${NONE:-${VAR}}", "value"),
            ("${VAR^^} ${VAR^} ${VAR,,}", "VALUE Value value"),
            ("${#VAR}", "5"),
            ("${VAR:1} ${VAR:1:2} ${VAR: -2}", "alue al ue"),
            ("${PATHS/a/x} ${PATHS//\\//_}", "/x/b/c.tar.gz /a/b/c.tar.gz"),
            ("${PATHS/#\\/a/x}", "/a/b/c.tar.gz"),
            ("${VAR/%ue/x} ${VAR/#va/x} ${VAR//a/oo}", "valx xlue voolue"),
            ("${PATHS##*/} ${PATHS%.*} ${PATHS%%.*} ${PATHS#*/}", "c.tar.gz /a/b/c.tar /a/b/c a/b/c.tar.gz"),
            ("$VAR $1 $", "$VAR $1 $"),
            ("$${VAR} $${1}", "${VAR} ${1}"),
            ("# ${VAR}\nk: ${VAR}", "# value\nk: value"),
        ] {
            assert_eq!(run(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn broken_expressions() {
        for (text, expected) in [
            ("a\nb ${VAR", "line 2: bad substitution `${VAR`"),
            ("${1}", "line 1: bad substitution `${1}`"),
            ("${}", "line 1: bad substitution `${}`"),
            ("${VAR:x}", "line 1: bad substitution `${VAR:x}`"),
            ("${VAR@Q}", "line 1: bad substitution `${VAR@Q}`"),
        ] {
            assert_eq!(run(text), Err(expected.to_owned()), "{text}");
        }
    }
}
