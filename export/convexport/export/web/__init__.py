"""`convexport --web`: a bundle as a page that classifies pictures in any browser, without a network."""
