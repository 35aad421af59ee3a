"""Adam that updates only the rows for which a step has gradients.

A plain Keras optimizer passes over every embedding table at each step; with large tables that is most of the training
time. Dense variables are updated as in Adam.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from towers.runtime import tf, tf_keras


class LazyAdam(tf_keras.optimizers.Optimizer):
    """Adam (Kingma & Ba 2015, algorithm 1) with row-wise updates for sparse gradients.

    ``name_to_scale`` multiplies the learning rate of the variables it names. ``rowwise`` names the tables that keep one
    number per row instead of two moments per weight: no first moment, and as second moment that of the row's mean
    square gradient (as in the row-wise AdaGrad of Mudigere et al. 2022, with Adam's forgetting). A step on a row then
    reads and writes a third as much, and keeps its direction.

    Deviations: the moments of a row change only in the steps that have a gradient for it, and the bias correction
    counts all steps, not the row's own (as in TensorFlow Addons' LazyAdam).
    """

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        name_to_scale: dict[str, float] | None = None,
        rowwise: Collection[str] = (),
        name: str = "LazyAdam",
        **kwargs: Any,
    ) -> None:
        # Keras' default is a decay of 0, with which it reads and writes every whole table at each step.
        super().__init__(name=name, weight_decay=None, jit_compile=False, **kwargs)
        self._learning_rate = self._build_learning_rate(learning_rate)
        self.beta_1 = beta_1
        self.beta_2 = beta_2
        self.epsilon = epsilon
        self.name_to_scale = dict(name_to_scale or {})
        self.rowwise = sorted(rowwise)

    def build(self, var_list: Any) -> None:
        """Creates the moments of each variable."""
        super().build(var_list)
        if getattr(self, "_built", False):
            return
        self._momentums, self._velocities = [], []
        for variable in var_list:
            # An unused first moment has no rows.
            by_row = variable.name in self.rowwise
            m, v = ([0, 1], [variable.shape[0], 1]) if by_row else (None, None)
            self._momentums.append(self.add_variable_from_reference(variable, "m", shape=m))
            self._velocities.append(self.add_variable_from_reference(variable, "v", shape=v))
        self._built = True

    def _deduplicate_sparse_grad(self, grads: Any) -> Any:
        """Adds up a row's gradients, as Keras does; copies nothing if each row has one, as in most steps."""
        return [_summed(grad) if isinstance(grad, tf.IndexedSlices) else grad for grad in grads]

    def _clip_gradients(self, grads: Any) -> Any:
        """Clips after adding up a row's gradients; Keras would clip before, when the norm is different."""
        clips = self.clipnorm is not None and self.clipnorm > 0
        return super()._clip_gradients(self._deduplicate_sparse_grad(grads) if clips else grads)

    def update_step(self, gradient: Any, variable: Any) -> None:
        """Applies one step to one variable; the rows of a sparse gradient are unique (the caller adds them up)."""
        place = self._index_dict[self._var_key(variable)]
        m, v = self._momentums[place], self._velocities[place]
        step = tf.cast(self.iterations + 1, variable.dtype)
        rate = self.name_to_scale.get(variable.name, 1.0) * tf.cast(self.learning_rate, variable.dtype)
        rate *= tf.sqrt(1.0 - tf.pow(self.beta_2, step))
        if variable.name in self.rowwise:
            self._row_step(gradient, variable, v, rate)
            return
        rate /= 1.0 - tf.pow(self.beta_1, step)
        if isinstance(gradient, tf.IndexedSlices):
            rows, values = gradient.indices, gradient.values
            new_m = self.beta_1 * tf.gather(m, rows) + (1.0 - self.beta_1) * values
            new_v = self.beta_2 * tf.gather(v, rows) + (1.0 - self.beta_2) * tf.square(values)
            m.scatter_update(tf.IndexedSlices(new_m, rows))
            v.scatter_update(tf.IndexedSlices(new_v, rows))
            _lower(variable, rows, rate * new_m / (tf.sqrt(new_v) + self.epsilon))
            return
        m.assign(self.beta_1 * m + (1.0 - self.beta_1) * gradient)
        v.assign(self.beta_2 * v + (1.0 - self.beta_2) * tf.square(gradient))
        variable.assign_sub(rate * m / (tf.sqrt(v) + self.epsilon))

    def _row_step(self, gradient: Any, variable: Any, v: Any, rate: Any) -> None:
        if not isinstance(gradient, tf.IndexedSlices):
            gradient = tf.IndexedSlices(gradient, tf.range(tf.shape(gradient)[0]))
        rows, values = gradient.indices, gradient.values
        # The mean, as a product with a column: faster than a reduction.
        square = tf.matmul(tf.square(values), tf.fill([variable.shape[1], 1], 1.0 / variable.shape[1]))
        new_v = self.beta_2 * tf.gather(v, rows) + (1.0 - self.beta_2) * square
        v.scatter_update(tf.IndexedSlices(new_v, rows))
        _lower(variable, rows, values * (rate / (tf.sqrt(new_v) + self.epsilon)))

    def get_config(self) -> dict[str, Any]:
        """The optimizer's settings, for saving."""
        config: dict[str, Any] = super().get_config()
        return {
            **config,
            "learning_rate": self._serialize_hyperparameter(self._learning_rate),
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
            "name_to_scale": self.name_to_scale,
            "rowwise": self.rowwise,
        }


def _lower(variable: Any, rows: Any, by: Any) -> None:
    """Subtracts ``by [rows, dim]`` from the rows, which are unique.

    Reads and writes: subtracting in place takes a lock per row and is 1.5 times as slow.
    """
    variable.scatter_update(tf.IndexedSlices(tf.gather(variable, rows) - by, rows))


def _summed(gradient: Any) -> Any:
    """The same gradient with unique rows."""
    rows, values = gradient.indices, gradient.values

    def summed() -> Any:
        different, place = tf.unique(rows)
        count = tf.size(different)
        # In order of first appearance: if all differ, that is their own order.
        alone = tf.equal(count, tf.size(place))
        return different, tf.cond(alone, lambda: values, lambda: tf.math.unsorted_segment_sum(values, place, count))

    ascending = tf.reduce_all(rows[1:] > rows[:-1])
    rows, values = tf.cond(ascending, lambda: (rows, values), summed)
    return tf.IndexedSlices(values, rows, gradient.dense_shape)
