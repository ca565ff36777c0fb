"The matrix W on disk: files of rows, mixing, and the store that commits a round in one step."
