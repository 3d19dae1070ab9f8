//! From words to a tree.

use super::field::{Field, Test};
use super::lex::{Placed, Token, Value, expected, lex};
use super::{InvalidFilter, MAX_FILTER_BYTES, MAX_FILTER_DEPTH, MAX_FILTER_TERMS, Node};

/// Reads a filter; `None` when there is nothing in it.
pub(super) fn parse(text: &str) -> Result<Option<Node>, InvalidFilter> {
    if text.len() > MAX_FILTER_BYTES {
        return Err(InvalidFilter::TooLong);
    }
    let tokens = lex(text)?;
    if tokens.is_empty() {
        return Ok(None);
    }
    let end = text.chars().count() + 1;
    let mut parser = Parser { tokens: &tokens, end, terms: 0 };
    let node = parser.expression(0)?;
    match parser.tokens.first() {
        None => Ok(Some(node)),
        Some(left) if left.token == Token::Close => {
            Err(expected(left.column, "`)` closes nothing"))
        }
        Some(left) => Err(expected(left.column, "AND or OR is expected between two terms")),
    }
}

struct Parser<'a> {
    tokens: &'a [Placed],
    end: usize,
    terms: usize,
}

impl Parser<'_> {
    fn next(&mut self) -> Option<&Placed> {
        let (first, rest) = self.tokens.split_first()?;
        self.tokens = rest;
        Some(first)
    }

    fn column(&self) -> usize {
        self.tokens.first().map_or(self.end, |placed| placed.column)
    }

    /// Takes a bare word when it comes next.
    fn takes(&mut self, word: &str) -> bool {
        let comes = matches!(self.tokens.first(), Some(Placed { token: Token::Word(next), .. }) if next == word);
        if comes {
            self.next();
        }
        comes
    }

    fn expression(&mut self, depth: usize) -> Result<Node, InvalidFilter> {
        let mut nodes = vec![self.factor(depth)?];
        while self.takes("AND") {
            nodes.push(self.factor(depth)?);
        }
        Ok(single(nodes, Node::All))
    }

    fn factor(&mut self, depth: usize) -> Result<Node, InvalidFilter> {
        let mut nodes = vec![self.term(depth)?];
        while self.takes("OR") {
            nodes.push(self.term(depth)?);
        }
        Ok(single(nodes, Node::Any))
    }

    fn term(&mut self, depth: usize) -> Result<Node, InvalidFilter> {
        if depth > MAX_FILTER_DEPTH {
            return Err(InvalidFilter::TooDeep);
        }
        if self.takes("NOT") {
            return Ok(Node::Not(Box::new(self.term(depth + 1)?)));
        }
        let column = self.column();
        match self.next().map(|placed| placed.token.clone()) {
            Some(Token::Minus) => Ok(Node::Not(Box::new(self.term(depth + 1)?))),
            Some(Token::Open) => {
                let node = self.expression(depth + 1)?;
                let column = self.column();
                match self.next() {
                    Some(Placed { token: Token::Close, .. }) => Ok(node),
                    Some(_) => Err(expected(column, "AND, OR or `)` is expected")),
                    None => Err(expected(column, "`)` is missing")),
                }
            }
            Some(Token::Word(name)) => self.comparison(&name, column).map(Node::Test),
            _ => Err(expected(column, format!("a field is expected: {}", Field::NAMES))),
        }
    }

    fn comparison(&mut self, name: &str, column: usize) -> Result<Test, InvalidFilter> {
        self.terms += 1;
        if self.terms > MAX_FILTER_TERMS {
            return Err(InvalidFilter::TooManyTerms);
        }
        // `labels."a key"` comes in two pieces.
        let quoted = match self.tokens.first() {
            Some(Placed { token: Token::Quoted(key), .. }) if name == "labels." => {
                let key = key.text.clone();
                self.next();
                Some(key)
            }
            _ => None,
        };
        let field = match quoted {
            Some(key) => Field::Label(key),
            None => Field::named(name).ok_or_else(|| {
                expected(column, format!("`{name}` is no field: {}", Field::NAMES))
            })?,
        };
        let place = self.column();
        let Some(Placed { token: Token::Operator(operator), .. }) = self.next() else {
            return Err(expected(place, "one of = != < <= > >= : is expected"));
        };
        let operator = *operator;
        let value_place = self.column();
        let value = match self.next().map(|placed| placed.token.clone()) {
            Some(Token::Word(text)) => Value { text, ..Value::default() },
            Some(Token::Quoted(value)) => value,
            _ => return Err(expected(value_place, "a value is expected")),
        };
        Test::new(field, operator, &value).map_err(|problem| problem.at(place, value_place))
    }
}

/// A list of one is that one.
fn single(mut nodes: Vec<Node>, many: impl Fn(Vec<Node>) -> Node) -> Node {
    match (nodes.pop(), nodes.is_empty()) {
        (Some(one), true) => one,
        (last, _) => {
            nodes.extend(last);
            many(nodes)
        }
    }
}
