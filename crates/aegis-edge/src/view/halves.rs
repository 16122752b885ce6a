//! Takes many things in one go, and where one among them is not fit, all others: by halves, so that it costs few tries and not one for each.

/// Is told of each go what became of it: of several that were taken together, or of one that was not.
type Done<'a, T, E> = dyn FnMut(&[T], Result<(), E>) + 'a;

/// Tries all of `items` at once, and where that fails each half, down to the one that fails alone.
pub(super) fn by_halves<T, E>(items: &[T], attempt: &mut dyn FnMut(&[T]) -> Result<(), E>, done: &mut Done<'_, T, E>) {
    if items.is_empty() {
        return;
    }
    let tried = attempt(items);
    if tried.is_ok() || items.len() == 1 {
        done(items, tried);
        return;
    }
    let (first, second) = items.split_at(items.len() / 2);
    by_halves(first, attempt, done);
    by_halves(second, attempt, done);
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Who was taken, who was refused, and after how many tries.
    fn taken(count: u32, bad: &[u32]) -> (Vec<u32>, Vec<u32>, u32) {
        let items: Vec<u32> = (0..count).collect();
        let (mut taken, mut refused, mut tries) = (Vec::new(), Vec::new(), 0);
        let mut attempt = |some: &[u32]| {
            tries += 1;
            some.iter().find(|one| bad.contains(one)).map_or(Ok(()), |one| Err(*one))
        };
        by_halves::<u32, u32>(&items, &mut attempt, &mut |some, outcome| match outcome {
            Ok(()) => taken.extend_from_slice(some),
            Err(one) => {
                assert_eq!(some, [one]);
                refused.push(one);
            }
        });
        (taken, refused, tries)
    }

    #[test]
    fn all_that_is_fit_is_taken_and_in_its_order_and_what_is_not_costs_few_tries() {
        assert_eq!(taken(0, &[]), (vec![], vec![], 0));
        assert_eq!(taken(500, &[]), ((0..500).collect(), vec![], 1), "one go");
        for count in [1, 2, 3, 8, 500] {
            for bad in 0..count {
                let (fit, refused, tries) = taken(count, &[bad]);
                assert_eq!(fit, (0..count).filter(|one| *one != bad).collect::<Vec<u32>>());
                assert_eq!(refused, [bad]);
                assert!(tries <= 1 + 2 * (32 - (count - 1).leading_zeros()), "{tries} of {count}");
            }
        }
        let all: Vec<u32> = (0..8).collect();
        assert_eq!(taken(8, &all), (vec![], all, 15));
    }
}
