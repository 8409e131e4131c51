//! The known name that a misspelled name was meant to be.

/// The nearest of the `known` names: at most two letters away, and one where the known name has at most four letters.
/// None for a name that is known, or near to none.
pub fn nearest(name: &str, known: &[&'static str]) -> Option<&'static str> {
    let name: Vec<char> = name.chars().take(MOST_LETTERS + 1).collect();
    if name.len() > MOST_LETTERS {
        return None;
    }
    known
        .iter()
        .map(|candidate| (distance(&name, candidate), *candidate))
        .filter(|(distance, candidate)| (1..=allowed(candidate)).contains(distance))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// A longer name is near to none.
const MOST_LETTERS: usize = 64;

fn allowed(candidate: &str) -> usize {
    if candidate.len() <= 4 { 1 } else { 2 }
}

/// Letters that are inserted, removed, changed, or exchanged with their neighbour.
fn distance(name: &[char], candidate: &str) -> usize {
    let candidate: Vec<char> = candidate.chars().collect();
    let mut before = vec![0; candidate.len() + 1];
    let mut last: Vec<usize> = (0..=candidate.len()).collect();
    for (row, letter) in name.iter().enumerate() {
        let mut current = vec![row + 1];
        for (column, wanted) in candidate.iter().enumerate() {
            let changed = last[column] + usize::from(letter != wanted);
            let mut cost = changed.min(last[column + 1] + 1).min(current[column] + 1);
            let is_exchange = row > 0
                && column > 0
                && *letter == candidate[column - 1]
                && name[row - 1] == *wanted;
            if is_exchange {
                cost = cost.min(before[column - 1] + 1);
            }
            current.push(cost);
        }
        before = std::mem::replace(&mut last, current);
    }
    last[candidate.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[&str] = &["join_channel", "leave_channel", "broadcast", "ping", "ack"];

    #[test]
    fn a_misspelled_name_gives_the_nearest() {
        for (name, wanted) in [
            ("brodcast", "broadcast"),
            ("braodcast", "broadcast"),
            ("join_chanell", "join_channel"),
            ("joinchannel", "join_channel"),
            ("Broadcast", "broadcast"),
            ("pign", "ping"),
            ("akc", "ack"),
        ] {
            assert_eq!(nearest(name, KNOWN), Some(wanted), "{name}");
        }
    }

    #[test]
    fn other_names_are_near_to_none() {
        let long = "b".repeat(1000);
        for name in [
            "broadcast",
            "chat",
            "",
            "find",
            "tick",
            "broad",
            "join",
            &long,
        ] {
            assert_eq!(nearest(name, KNOWN), None, "{name}");
        }
    }
}
