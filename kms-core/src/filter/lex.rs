//! From text to words, each with its column.

use super::InvalidFilter;

/// A piece of a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token {
    /// A bare word.
    Word(String),
    /// A quoted string, without its quotes.
    Quoted(Value),
    /// A comparison.
    Operator(Operator),
    /// `(`
    Open,
    /// `)`
    Close,
    /// `-` that stands before a term.
    Minus,
}

/// A text, and how it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Value {
    pub(super) text: String,
    pub(super) is_quoted: bool,
    /// Whether its first character, and its last, was written `\*`: a star that stands for itself.
    pub(super) starts_with_star: bool,
    pub(super) ends_with_star: bool,
}

impl Value {
    fn push(&mut self, character: char, is_star: bool) {
        self.starts_with_star |= is_star && self.text.is_empty();
        self.ends_with_star = is_star;
        self.text.push(character);
    }
}

/// A comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Operator {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    More,
    MoreOrEqual,
    Has,
}

/// A piece and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Placed {
    pub(super) token: Token,
    pub(super) column: usize,
}

/// Returns the error of a column.
pub(super) fn expected(column: usize, what: impl Into<String>) -> InvalidFilter {
    InvalidFilter::Syntax { column, expected: what.into() }
}

/// What a bare word is made of.
fn is_of_word(character: char) -> bool {
    character.is_ascii_alphanumeric() || "_-./*@+".contains(character)
}

/// Splits a filter.
pub(super) fn lex(text: &str) -> Result<Vec<Placed>, InvalidFilter> {
    let mut tokens = Vec::new();
    let mut characters = text.chars().zip(1..).peekable();
    while let Some((character, column)) = characters.next() {
        let mut follows_equal = || characters.next_if(|(next, _)| *next == '=').is_some();
        let token = match character {
            ' ' | '\t' | '\n' | '\r' => continue,
            '(' => Token::Open,
            ')' => Token::Close,
            ':' => Token::Operator(Operator::Has),
            '=' => Token::Operator(Operator::Equal),
            '<' if follows_equal() => Token::Operator(Operator::LessOrEqual),
            '<' => Token::Operator(Operator::Less),
            '>' if follows_equal() => Token::Operator(Operator::MoreOrEqual),
            '>' => Token::Operator(Operator::More),
            '!' if follows_equal() => Token::Operator(Operator::NotEqual),
            '!' => {
                return Err(expected(column, "`!` is not known: say `!=`, or NOT before a term"));
            }
            '-' => Token::Minus,
            '"' | '\'' => {
                let mut content = Value { is_quoted: true, ..Value::default() };
                loop {
                    match characters.next() {
                        None => return Err(expected(column, "the quoted text does not end")),
                        Some((next, _)) if next == character => break,
                        Some(('\\', column)) => {
                            let escaped = characters.next().map(|(next, _)| next);
                            let Some(next @ ('\\' | '"' | '\'' | '*')) = escaped else {
                                let known = "only \\\\, \\\", \\' and \\* are known";
                                return Err(expected(column, known));
                            };
                            content.push(next, next == '*');
                        }
                        Some((next, _)) => content.push(next, false),
                    }
                }
                Token::Quoted(content)
            }
            _ if is_of_word(character) => {
                let mut word = String::from(character);
                while let Some((next, _)) = characters.next_if(|(next, _)| is_of_word(*next)) {
                    word.push(next);
                }
                Token::Word(word)
            }
            _ => return Err(expected(column, "this character stands only in quotes")),
        };
        tokens.push(Placed { token, column });
    }
    Ok(tokens)
}
