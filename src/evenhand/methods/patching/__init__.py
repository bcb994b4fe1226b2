"""A patch for a finished classifier: bias terms, importances, masks, the two steps of BMFT and SWiFT, and what they are compared with."""
