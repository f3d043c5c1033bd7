//! `cel.bind(name, value, expression)` (cel-go `ext/bindings.go`, version 0): `expression` with `name` for `value`.

use cel::{
    IdedExpr, ParseError,
    common::ast::{ComprehensionExpr, Expr, ListExpr, LiteralValue},
    parser::{Macro, MacroExprHelper},
};

/// The variable of a loop that is never run; no identifier can be written so.
const UNUSED: &str = "#unused";

/// The macro.
pub(super) fn bind() -> Macro {
    Macro::receiver("bind", 3, expand)
}

/// A loop over nothing, whose accumulator is the name: CEL has no other way to give one.
fn expand(
    helper: &mut MacroExprHelper<'_>,
    target: &mut Option<IdedExpr>,
    args: &mut Vec<IdedExpr>,
) -> Result<Option<IdedExpr>, ParseError> {
    if !matches!(target, Some(IdedExpr { expr: Expr::Ident(namespace), .. }) if namespace == "cel") {
        return Ok(None);
    }
    let mut args = args.drain(..);
    let (Some(name), Some(value), Some(result)) = (args.next(), args.next(), args.next()) else {
        return Ok(None);
    };
    let Expr::Ident(name_of_value) = name.expr else {
        return Err(helper.new_error(name.id, "cel.bind() takes a simple name first"));
    };
    let nothing = Expr::List(ListExpr { elements: Vec::new(), optional_indices: Vec::new() });
    let never = Expr::Literal(LiteralValue::Boolean(false.into()));
    let comprehension = ComprehensionExpr {
        iter_range: helper.next_expr(nothing),
        iter_var: UNUSED.to_owned(),
        iter_var2: None,
        accu_var: name_of_value.clone(),
        accu_init: value,
        loop_cond: helper.next_expr(never),
        loop_step: helper.next_expr(Expr::Ident(name_of_value)),
        result,
    };
    Ok(Some(helper.next_expr(Expr::Comprehension(Box::new(comprehension)))))
}
