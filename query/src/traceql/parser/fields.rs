//! Field expressions: precedence climbing over the table of the language.
//!
//! Unary operators take part in the table (a minus reaches over `*` but not over `+`), and `nil` is not a value but one side of `=` and
//! `!=`; both are handled where an operand is read.

use super::{
    super::{
        ast::{BinaryOp, Expr, LogicalOp, Node, UnaryOp},
        error::Error,
        fold,
        lexer::Token,
        value::Value,
    },
    Parser,
};

/// What can begin an operand.
pub(super) const EXPECTED: &str = "an attribute, an intrinsic, a literal, \"(\", \"!\" or \"-\"";

/// `+`, `-` and the unary minus.
const LEVEL_SUM: u8 = 4;
const LEVEL_NOT: u8 = 5;
const LEVEL_PRODUCT: u8 = 6;
const LEVEL_POWER: u8 = 7;
const LEVEL_COMPARISON: u8 = 3;
const LEVEL_LOGICAL: u8 = 2;

#[derive(Clone, Copy)]
enum Infix {
    Binary(BinaryOp),
    Logical(LogicalOp),
}

fn infix(token: &Token) -> Option<(Infix, u8)> {
    let Token::Symbol(symbol) = token else {
        return None;
    };
    let (op, level) = match *symbol {
        "&&" => return Some((Infix::Logical(LogicalOp::And), LEVEL_LOGICAL)),
        "||" => return Some((Infix::Logical(LogicalOp::Or), LEVEL_LOGICAL)),
        "=" => (BinaryOp::Equal, LEVEL_COMPARISON),
        "!=" => (BinaryOp::NotEqual, LEVEL_COMPARISON),
        ">" => (BinaryOp::Greater, LEVEL_COMPARISON),
        ">=" => (BinaryOp::GreaterEqual, LEVEL_COMPARISON),
        "<" => (BinaryOp::Less, LEVEL_COMPARISON),
        "<=" => (BinaryOp::LessEqual, LEVEL_COMPARISON),
        "=~" => (BinaryOp::Regex, LEVEL_COMPARISON),
        "!~" => (BinaryOp::NotRegex, LEVEL_COMPARISON),
        "+" => (BinaryOp::Add, LEVEL_SUM),
        "-" => (BinaryOp::Subtract, LEVEL_SUM),
        "*" => (BinaryOp::Multiply, LEVEL_PRODUCT),
        "/" => (BinaryOp::Divide, LEVEL_PRODUCT),
        "%" => (BinaryOp::Modulo, LEVEL_PRODUCT),
        "^" => (BinaryOp::Power, LEVEL_POWER),
        _ => return None,
    };
    Some((Infix::Binary(op), level))
}

/// An expression and the height of its tree.
type Measured = (Expr, u32);

impl Parser {
    pub(super) fn expr(&mut self) -> Result<Expr, Error> {
        self.climb(LEVEL_LOGICAL).map(|(expr, _)| expr)
    }

    fn climb(&mut self, lowest: u8) -> Result<Measured, Error> {
        self.nested(1, |parser| {
            let (mut left, mut height) = parser.operand()?;
            while let Some((op, level)) = infix(parser.peek()).filter(|(_, level)| *level >= lowest) {
                let at = parser.at();
                parser.skip();
                if let Infix::Binary(equality @ (BinaryOp::Equal | BinaryOp::NotEqual)) = op
                    && parser.peek_word() == Some("nil")
                {
                    parser.skip();
                    left = fold::nil_test(at, left, equality == BinaryOp::NotEqual, false);
                    height += 1;
                    parser.check_depth(height)?;
                    continue;
                }
                let (right, right_height) = parser.climb(if level == LEVEL_POWER { level } else { level + 1 })?;
                // A chain grows in width, not in height.
                let chained = matches!((&left.node, op), (Node::Logical { op: chain, .. }, Infix::Logical(op)) if *chain == op);
                height = if chained { height.max(right_height + 1) } else { height.max(right_height) + 1 };
                parser.check_depth(height)?;
                left = match op {
                    Infix::Binary(op) => fold::binary(at, op, left, right, &mut parser.patterns),
                    Infix::Logical(op) => fold::logical(at, op, left, right),
                };
            }
            Ok((left, height))
        })
    }

    fn operand(&mut self) -> Result<Measured, Error> {
        let at = self.at();
        for (symbol, op, reach) in [("-", UnaryOp::Negate, LEVEL_SUM + 1), ("!", UnaryOp::Not, LEVEL_NOT + 1)] {
            if self.take(symbol) {
                let (operand, height) = self.climb(reach)?;
                self.check_depth(height + 1)?;
                return Ok((fold::unary(at, op, operand), height + 1));
            }
        }
        if self.take("(") {
            let inner = self.climb(LEVEL_LOGICAL)?;
            self.expect(")")?;
            return Ok(inner);
        }
        if self.peek_word() == Some("nil") {
            self.skip();
            return self.nil_first();
        }
        let node = match self.take_literal() {
            Some(value) => Node::Literal(value),
            None => Node::Field(self.take_field()?.ok_or_else(|| self.unexpected(EXPECTED))?),
        };
        Ok((Expr { at, node }, 1))
    }

    /// `nil = x`, after the `nil`.
    fn nil_first(&mut self) -> Result<Measured, Error> {
        let at = self.at();
        let negated = match self.peek() {
            Token::Symbol("=") => false,
            Token::Symbol("!=") => true,
            _ => return Err(self.unexpected("\"=\" or \"!=\" after nil")),
        };
        self.skip();
        let (operand, height) = if self.peek_word() == Some("nil") && !matches!(self.peek_second(), Token::Symbol("=" | "!=")) {
            let at = self.at();
            self.skip();
            (Expr { at, node: Node::Literal(Value::Nil) }, 1)
        } else {
            self.climb(LEVEL_COMPARISON + 1)?
        };
        self.check_depth(height + 1)?;
        Ok((fold::nil_test(at, operand, negated, true), height + 1))
    }
}
