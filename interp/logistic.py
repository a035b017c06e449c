HEAD
def fit_logistic(
    features: Float[np.ndarray, "decision feature"],
    code: Int[np.ndarray, "decision"],
    grid: Sequence[float],
    tolerance: float = TOLERANCE,
) -> tuple[Float[np.ndarray, "C feature class"], Float[np.ndarray, "C 1 class"], int]:
    """Multinomial logistic regression with an L2 penalty, for each C of `grid`, each fit starting from the one before.

    The optimum is that of scikit-learn's LogisticRegression (for two classes, of its softmax form: its binary form at 2 C).
    It is reached in fewer steps because the solver sees every feature scaled by the root of its approximate curvature, which
    works best on orthogonal features.

    features: one row per decision. code: classes 0 to K - 1, all present. grid: inverse penalties.
    tolerance: largest gradient entry, in the scaled features, at which a fit stops.
    Returns weights, bias and the number of fits that stopped at MAX_ITER instead.
    """
    (n, d), n_classes = features.shape, code.max() + 1
    target, padded = np.eye(n_classes)[code], np.hstack([features, np.ones((n, 1))])
    power = (padded**2).mean(axis=0)
    weights, unconverged = np.zeros((len(grid), d + 1, n_classes)), 0
    start = weights[0]
    for c, out in zip(grid, weights, strict=True):
        penalty = np.append(np.full(d, 1 / (c * n)), 0.0)
        root = np.sqrt(power / n_classes + penalty)[:, None]
        scaled, shrink = padded / root.T, penalty[:, None] / root**2
        transposed = np.ascontiguousarray(scaled.T) / n

        def loss(flat, scaled=scaled, shrink=shrink, transposed=transposed):
            v = flat.reshape(d + 1, n_classes)
            logit = scaled @ v
            logit -= logit.max(axis=1, keepdims=True)
            of_label = (logit * target).sum(axis=1)
            np.exp(logit, out=logit)
            total = logit.sum(axis=1, keepdims=True)
            value = (np.log(total[:, 0]) - of_label).mean() + 0.5 * (shrink * v * v).sum()
            return value, (transposed @ (logit / total - target) + shrink * v).ravel()

        options = {"maxiter": MAX_ITER, "gtol": tolerance, "ftol": 1e-15}
        found = minimize(loss, (start * root).ravel(), jac=True, method="L-BFGS-B", options=options)
        out[:] = start = found.x.reshape(d + 1, n_classes) / root
        unconverged += int(found.nit >= MAX_ITER)
    return weights[:, :-1], weights[:, -1:], unconverged


def standardised(values: Float[np.ndarray, "decision feature"]):
    def features(train, held_out):
        mean, scale = values[train].mean(axis=0), values[train].std(axis=0)
        scale = np.where(scale > 1e-9 * (1 + np.abs(mean)), scale, np.inf)  # a constant feature says nothing: it becomes 0
        return rotated((values[train] - mean) / scale, (values[held_out] - mean) / scale)

    return features


def tfidf(texts: Sequence[str]):
    # Counting learns nothing from other rows, so it is done once; vocabulary and idf are those of the training rows.
    counts = CountVectorizer(ngram_range=(1, 2), token_pattern=r"\w+").fit_transform(texts).tocsr()

    def features(train, held_out):
        known = np.flatnonzero(np.asarray(counts[train].sum(axis=0)).ravel())
        weigh = TfidfTransformer().fit(counts[train][:, known])
        return rotated(weigh.transform(counts[train][:, known]), weigh.transform(counts[held_out][:, known]))

    return features


def rotated(train, held_out) -> tuple[np.ndarray, np.ndarray]:
    """The same rows along the principal axes of the training rows, without the axes that those do not reach.

    The penalised optimum lies in the training rows' span and rotation leaves the penalty alone: predictions are the same.
    """
    wide = train.shape[0] < train.shape[1]
    gram = _dense(train @ train.T if wide else train.T @ train)
    power, axes = np.linalg.eigh(gram)
    keep = power > 1e-12 * max(power[-1], 1e-300)
    axes = axes[:, keep] / (np.sqrt(power[keep]) if wide else 1)
    return (gram @ axes, _dense(held_out @ train.T) @ axes) if wide else (train @ axes, held_out @ axes)


def _dense(matrix) -> np.ndarray:
    return matrix.toarray() if issparse(matrix) else matrix
