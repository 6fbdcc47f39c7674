# tutorials
