//! Subscribers for a measurement that another program takes: they read all that comes until the standard input ends.

use std::io;
use std::time::Duration;

use crate::clients::Clients;
use crate::target::{Role, Target};

pub fn run(target: &Target, subscribers: usize) -> io::Result<()> {
    let mut clients = Clients::new()?;
    let listeners = clients.open(target, Role::Subscriber, subscribers, &mut |_, _| {})?;
    let rest_of_input = std::thread::spawn(|| io::copy(&mut io::stdin(), &mut io::sink()));
    while !rest_of_input.is_finished() {
        clients.turn(Some(Duration::from_millis(20)), &mut |_, _| {})?;
        let closed = clients.closed(listeners.clone());
        if closed > 0 {
            return Err(io::Error::other(format!(
                "{}: it closed {closed} of {subscribers} listeners",
                target.name
            )));
        }
    }
    Ok(())
}
