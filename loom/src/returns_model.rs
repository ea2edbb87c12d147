//! The list that dropped buffers leave their blocks in.

use crate::returns::{Node, ReturnList};
use loom::sync::Arc;
use loom::thread;

/// Loom counts its own `Arc`s, and so sees a value that is lost or freed twice.
fn node(value: usize) -> Box<Node<Arc<usize>>> {
    Box::new(Node::new(Arc::new(value)))
}

#[test]
fn what_several_threads_return_arrives_once_and_oldest_first() {
    loom::model(|| {
        let list = Arc::new(ReturnList::new());
        let threads = [vec![10, 11], vec![20]].map(|values| {
            let list = list.clone();
            thread::spawn(move || values.into_iter().for_each(|value| list.push(node(value))))
        });
        let mut taken = list.take();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        taken.extend(list.take());
        let values: Vec<usize> = taken.iter().map(|value| **value).collect();
        let (tens, twenties): (Vec<_>, Vec<_>) = values.iter().partition(|&&value| value < 20);
        assert_eq!((tens, twenties), (vec![10, 11], vec![20]));
    });
}

#[test]
fn what_nobody_takes_goes_with_the_list() {
    loom::model(|| {
        let list = Arc::new(ReturnList::new());
        let pusher = list.clone();
        let thread = thread::spawn(move || pusher.push(node(1)));
        list.push(node(2));
        drop(list);
        thread.join().unwrap();
    });
}
