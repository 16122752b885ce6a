//! Number literals: from the text of a JSON number to the integer or the double it means. Owns the range rules; promises
//! the correctly rounded double for a literal of any length, as Python and JavaScript read it.

use serde_json::Number;

use crate::MAX_SAFE_INTEGER;
use crate::error::Reason;

pub(crate) const UNSAFE_INTEGER: &str = "an integer is outside ±(2^53 - 1); send it as a string";
pub(crate) const NOT_FINITE: &str = "NaN and infinities are not JSON numbers; send null or a string";
const TOO_LARGE: &str = "a number is too large for a double; send it as a string";

/// Why a literal, already known to be a JSON number, was refused.
pub(crate) type Refusal = (Reason, &'static str);

/// An integer literal (no fraction, no exponent) with its sign apart.
pub(crate) fn integer(negative: bool, digits: &str) -> Result<Number, Refusal> {
    // A literal too long for u64 is certainly outside the safe range, for JSON allows no leading zeros.
    let magnitude = digits.parse::<u64>().ok().filter(|&magnitude| magnitude <= MAX_SAFE_INTEGER);
    match magnitude {
        Some(magnitude) if negative => Ok(Number::from(-(magnitude as i64))),
        Some(magnitude) => Ok(Number::from(magnitude)),
        None => Err((Reason::IntegerOutOfRange, UNSAFE_INTEGER)),
    }
}

/// A literal with a fraction or an exponent.
pub(crate) fn double(literal: &str) -> Result<Number, Refusal> {
    let nearest = if literal.len() <= MAX_DIRECT_LENGTH { literal.parse::<f64>() } else { shortened(literal).parse::<f64>() };
    // An infinity is what the standard library makes of a literal beyond the largest double.
    nearest.ok().and_then(Number::from_f64).ok_or((Reason::NumberOutOfRange, TOO_LARGE))
}

/// `str::parse::<f64>` stops reading an exponent somewhere above 65,536, which is wrong where a mantissa of similar length
/// balances it: it reads `0.<a million zeros>1e1000001` as 0, and other languages as 1. Literals up to this length cannot
/// balance such an exponent, so the result is 0 or an infinity either way.
const MAX_DIRECT_LENGTH: usize = 4096;

/// No double, and no halfway point between two, has more significant decimal digits than 767. Beyond them it only matters
/// whether anything but zeros follows.
const SIGNIFICANT_DIGITS: usize = 800;

/// A short literal that rounds to the same double as `literal`.
fn shortened(literal: &str) -> String {
    let (sign, magnitude) = match literal.strip_prefix('-') {
        Some(magnitude) => ("-", magnitude),
        None => ("", literal),
    };
    let (mantissa, exponent) = magnitude.split_once(['e', 'E']).unwrap_or((magnitude, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));

    let all_digits = [whole, fraction].concat();
    let significant = all_digits.trim_start_matches('0');
    let leading_zeros = all_digits.len() - significant.len();
    let point = saturating_integer(exponent).saturating_add(whole.len() as i64).saturating_sub(leading_zeros as i64);

    let kept = &significant[..significant.len().min(SIGNIFICANT_DIGITS)];
    let dropped = &significant[kept.len()..];
    let sticky = if dropped.bytes().any(|digit| digit != b'0') { "1" } else { "" };
    format!("{sign}0.{kept}{sticky}e{point}")
}

fn saturating_integer(exponent: &str) -> i64 {
    let (negative, digits) = match exponent.as_bytes() {
        [b'-', digits @ ..] => (true, digits),
        [b'+', digits @ ..] => (false, digits),
        digits => (false, digits),
    };
    let magnitude =
        digits.iter().fold(0i64, |sum, digit| sum.saturating_mul(10).saturating_add(i64::from(digit.wrapping_sub(b'0'))));
    if negative { -magnitude } else { magnitude }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(literal: &str) -> f64 {
        double(literal).unwrap().as_f64().unwrap()
    }

    #[test]
    fn the_safe_range_ends_at_two_to_the_53_minus_one() {
        assert_eq!(integer(false, "9007199254740991").unwrap(), Number::from(MAX_SAFE_INTEGER));
        assert_eq!(integer(true, "9007199254740991").unwrap(), Number::from(-9_007_199_254_740_991_i64));
        for digits in ["9007199254740992", "18446744073709551616", "99999999999999999999999999"] {
            assert_eq!(integer(false, digits).unwrap_err().0, Reason::IntegerOutOfRange);
            assert_eq!(integer(true, digits).unwrap_err().0, Reason::IntegerOutOfRange);
        }
    }

    #[test]
    fn doubles_are_correctly_rounded() {
        // One below, at and above halfway between 2^53 and 2^53 + 2, whose halfway point rounds to even.
        assert_eq!(read("9007199254740993.0"), 9_007_199_254_740_992.0);
        assert_eq!(read("9007199254740993.00000000000000000000000000000001"), 9_007_199_254_740_994.0);
        assert_eq!(read("2.2250738585072011e-308"), 2.225_073_858_507_201e-308);
        assert_eq!(read("1.7976931348623158e308"), f64::MAX);
        assert_eq!(double("1.7976931348623159e308").unwrap_err().0, Reason::NumberOutOfRange);
        assert_eq!(read("1e-400"), 0.0);
        assert_eq!(read("0e99999999999999999999"), 0.0);
        assert_eq!(double("-1e99999999999999999999").unwrap_err().0, Reason::NumberOutOfRange);
    }

    #[test]
    fn a_long_mantissa_balances_a_long_exponent() {
        let zeros = "0".repeat(700_000);
        assert_eq!(read(&format!("0.{zeros}1e700001")), 1.0);
        assert_eq!(read(&format!("-25{zeros}E-700001")), -2.5);
        assert_eq!(read(&format!("1.{zeros}e+0")), 1.0);
        assert_eq!(read(&format!("0.{zeros}")), 0.0);
        assert_eq!(read(&format!("0.{zeros}1e700309")), 1e308);
        assert_eq!(double(&format!("0.{zeros}1e700310")).unwrap_err().0, Reason::NumberOutOfRange);
        // Halfway, and above halfway by something that comes far behind the digits that are kept.
        assert_eq!(read(&format!("9007199254740993.{zeros}")), 9_007_199_254_740_992.0);
        assert_eq!(read(&format!("9007199254740993.{zeros}1")), 9_007_199_254_740_994.0);
    }

    #[test]
    fn a_shortened_literal_means_the_same_double() {
        for literal in ["1.5e3", "-0.00123", "0.0", "-0.0e5", "123456789.987654321E-20", "5e-324", "1e+2", "100.0e-2"] {
            let direct: f64 = literal.parse().unwrap();
            let rescaled: f64 = shortened(literal).parse().unwrap();
            assert_eq!(direct.to_bits(), rescaled.to_bits(), "{literal}");
        }
    }
}
