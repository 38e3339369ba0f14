"""The world "chain": a corridor with the reward at its end, where credit must travel. Exact, learned in milliseconds.

States 0..length-1; action 1 moves right, action 0 moves left (state 0 has a wall); moving right from the last state
ends the episode with reward 1. This is where reward shaping is studied.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

EPSILON, RATE, MOST = 0.3, 0.5, 3000  # share of random moves, learning rate, episodes at most
Bonus = Callable[[int, int], float]  # (state, next state) -> extra reward; next state = length means the end


def no_bonus(state: int, after: int) -> float:
    return 0.0


def potential_bonus(potential: Callable[[int], float], gamma: float) -> Bonus:
    """gamma * Phi(s') - Phi(s): the only bonus that leaves every optimal policy as it is (Ng et al. 1999)."""
    return lambda state, after: gamma * potential(after) - potential(state)


class Chain:
    """Deterministic chain of `length` states, discount `gamma`."""

    def __init__(self, length: int = 12, gamma: float = 0.95):
        self.length, self.gamma = length, gamma

    def step(self, state: int, action: int) -> tuple[int, float]:
        """Next state and reward; the next state `length` is the end."""
        after = state + 1 if action == 1 else max(state - 1, 0)
        return after, float(after == self.length)

    def optimal_q(self, bonus: Bonus = no_bonus) -> np.ndarray:
        """Optimal action values by value iteration, shape (length, 2), fp64."""
        q = np.zeros((self.length, 2))
        while True:
            value, new = np.append(q.max(1), 0.0), np.empty_like(q)
            for state, action in np.ndindex(q.shape):
                after, reward = self.step(state, action)
                new[state, action] = reward + bonus(state, after) + self.gamma * value[after]
            if np.abs(new - q).max() < 1e-13:
                return new
            q = new

    def episodes_to_learn(self, bonus: Bonus, seed: int) -> int:
        """Episodes of Q-learning until the greedy policy walks straight to the end; at most `MOST`.

        Epsilon-greedy, ties broken at random; an episode is cut after 10 x length moves.
        """
        rng = np.random.default_rng(seed)
        q = np.zeros((self.length + 1, 2))
        for episode in range(1, MOST + 1):
            state = 0
            for _ in range(10 * self.length):
                explore = rng.random() < EPSILON or q[state, 0] == q[state, 1]
                action = int(rng.integers(2)) if explore else int(q[state].argmax())
                after, reward = self.step(state, action)
                target = reward + bonus(state, after) + self.gamma * q[after].max() * (after < self.length)
                q[state, action] += RATE * (target - q[state, action])
                state = after
                if state == self.length:
                    break
            if (q[: self.length, 1] > q[: self.length, 0]).all():
                return episode
        return MOST
